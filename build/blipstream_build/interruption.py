# SPDX-License-Identifier: Apache-2.0
"""What Ctrl-C and SIGTERM do to a build."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import NoReturn

STATUS = 130  # a shell's exit status for Ctrl-C
MESSAGE = "stopped"
SIGNALS = (signal.SIGINT, signal.SIGTERM)

heard = Event()


@contextmanager
def handled() -> Iterator[None]:
    """End the process at once on a signal, until `end_cleanly` is called; restore the handlers at the end.

    A library that is being imported may swallow an exception, so none is raised. A signal that is ignored stays so.
    """
    heard.clear()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _handle(_end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_cleanly() -> None:
    """Raise KeyboardInterrupt on the first signal from now on, and ignore those that follow."""
    _handle(_raise)


def check() -> None:
    """Raise KeyboardInterrupt if a library swallowed the first one."""
    if heard.is_set():
        raise KeyboardInterrupt


def _handle(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(STATUS)


def _raise(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    heard.set()
    raise KeyboardInterrupt
