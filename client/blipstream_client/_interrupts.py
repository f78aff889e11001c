# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that is always heard.

Python raises KeyboardInterrupt between two steps of the main thread, or when the signal interrupts a call that waits.
A signal that comes after the last step and before the call has begun to wait interrupts nothing, and nobody hears it
until the call ends: reading standard input, when somebody types. So another thread knocks until it has been heard.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

KNOCK_SECONDS = 0.05


@contextmanager
def heard() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt in here at once, whatever the main thread waits for."""
    before = signal.getsignal(signal.SIGINT)
    ours = before in (signal.default_int_handler, signal.SIG_DFL)  # and not the shell's, which had it ignored
    if not (ours and hasattr(signal, "pthread_kill") and threading.current_thread() is threading.main_thread()):
        yield
        return
    was_heard = threading.Event()
    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def hear(number: int, frame: FrameType | None) -> None:
        was_heard.set()
        signal.default_int_handler(number, frame)

    def knock() -> None:
        while number := os.read(told, 1):
            while number[0] == signal.SIGINT and not was_heard.wait(KNOCK_SECONDS):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    signal.signal(signal.SIGURG, lambda *_: None)  # ignored, it would not interrupt
    signal.signal(signal.SIGINT, hear)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=knock, name="blipstream-interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGURG, signal.SIG_DFL)
        os.close(tell)
