# SPDX-License-Identifier: Apache-2.0
"""What the signals do that ask a command to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP.

A signal that is ignored stays so, as `nohup` and shells ask for that run a command in the background.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATUS = 130  # a shell's exit status for Ctrl-C
GOODBYE = "stopped"

SS_DISABLE = 2  # of sigaltstack(2)

stopping = Event()  # set by the first signal, whose KeyboardInterrupt a library or a destructor may swallow


@contextmanager
def handled(status: int = STATUS) -> Iterator[None]:
    """Exit at once on a stop signal, until `interrupt_on_signals` is called; restore the handlers at the end."""
    with restored():
        exit_on_signals(status)
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Restore the handlers at the end."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_on_signals(status: int = STATUS) -> None:
    """Exit at once on a stop signal. For the first moments, while modules are imported and nothing is there to end.

    A KeyboardInterrupt would print a traceback there, or be swallowed. The farewell goes to standard output if the
    status is 0, and else to standard error.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        with suppress(OSError):  # the terminal may be what went away
            os.write(2 if status else 1, f"{GOODBYE}\n".encode())
        os._exit(status)

    stopping.clear()
    handle(leave)


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on the first stop signal, and ignore all that follow: none may interrupt the stopping."""
    handle(_interrupt)


def check() -> None:
    """Raise KeyboardInterrupt if the first one was swallowed."""
    if stopping.is_set():
        raise KeyboardInterrupt


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def use_ordinary_stack() -> None:
    """Let this thread handle signals on its ordinary stack.

    OpenVINO 2026.4 leaves a thread that drops compiled models an alternate stack that is gone. Python's handlers run on
    it, so the next signal would end the process with SIGSEGV.
    """
    ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(None, SS_DISABLE, 0)), None)


def handle(handler: Callable[[int, FrameType | None], object]) -> None:
    """Let a function handle the stop signals that are not ignored."""
    use_ordinary_stack()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    stopping.set()
    raise KeyboardInterrupt
