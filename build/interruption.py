# SPDX-License-Identifier: Apache-2.0
"""What Ctrl-C does to a build."""

import os
import signal
from threading import Event
from types import FrameType
from typing import NoReturn

STATUS = 130  # as shells have it
SAID = "stopped"

heard = Event()


def end_at_once() -> None:
    """Have it end the process, where nothing is made yet: a library that is being loaded could swallow an exception."""
    signal.signal(signal.SIGINT, _end)


def end_cleanly() -> None:
    """Have it raise KeyboardInterrupt once, and let no more of it interrupt the ending."""
    signal.signal(signal.SIGINT, _raise)


def check() -> None:
    """Raise KeyboardInterrupt where a library swallowed it."""
    if heard.is_set():
        raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    os.write(2, f"{SAID}\n".encode())
    os._exit(STATUS)


def _raise(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    signal.signal(number, signal.SIG_IGN)
    heard.set()
    raise KeyboardInterrupt
