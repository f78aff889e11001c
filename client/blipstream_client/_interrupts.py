# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that always takes effect at once, and SIGTERM that does the same: service managers send it.

Python raises KeyboardInterrupt between two bytecodes of the main thread, or when the signal interrupts a blocking call.
A signal that comes after the last bytecode and before the call has begun to block interrupts nothing, and Python reacts
only when the call ends: for standard input, when somebody types. So another thread sends signals to the main thread
until Python has reacted.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_SECONDS = 0.05


@contextmanager
def prompt_interrupts() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise KeyboardInterrupt at once, whatever the main thread waits for."""
    before = signal.getsignal(signal.SIGINT)
    stops = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ours = before in (signal.default_int_handler, signal.SIG_DFL)  # not SIG_IGN, which a shell sets for background jobs
    if not (ours and hasattr(signal, "pthread_kill") and threading.current_thread() is threading.main_thread()):
        yield
        return
    handled = threading.Event()
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)

    def handle(number: int, frame: FrameType | None) -> None:
        handled.set()
        signal.default_int_handler(number, frame)

    def repeat() -> None:
        while number := os.read(wakeup_read, 1):
            while number[0] in (signal.SIGINT, signal.SIGTERM) and not handled.wait(REPEAT_SECONDS):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    signal.signal(signal.SIGURG, lambda *_: None)  # the default is to ignore it, which interrupts no call
    signal.signal(signal.SIGINT, handle)
    if stops:
        signal.signal(signal.SIGTERM, handle)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    threading.Thread(target=repeat, name="blipstream-interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, before)
        if stops:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGURG, signal.SIG_DFL)
        os.close(wakeup_write)
