# SPDX-License-Identifier: Apache-2.0
"""Processes that a program sends work to, and that end with it."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


def single_process() -> ProcessPoolExecutor:
    """One process, which starts with the first work for it."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which ends its processes in order
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, the process would wait for ever for work from a program that was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
