# SPDX-License-Identifier: Apache-2.0
"""What the signals do that ask a server to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GOODBYE = "stopped"

stopping = Event()  # set by the signal, since a destructor may swallow its KeyboardInterrupt


def exit_on_signals() -> None:
    """Exit at once on a stop signal. For the first moments, while modules are imported and nothing is there to end.

    A KeyboardInterrupt would print a traceback there.
    """
    _handle(_exit)


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on the first stop signal, and ignore all that follow: none may interrupt the stopping."""
    _handle(_interrupt)


def _handle(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    """Handle the stop signals, except a SIGHUP that is ignored, as `nohup` asks for."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    with suppress(OSError, ValueError):  # the terminal may be what went away
        os.write(sys.stdout.fileno(), f"{GOODBYE}\n".encode())
    os._exit(0)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    stopping.set()
    raise KeyboardInterrupt
