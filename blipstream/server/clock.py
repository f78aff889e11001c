# SPDX-License-Identifier: Apache-2.0
"""Notice at once that this machine's clock was set: Linux then cancels timers that ask for it."""

import ctypes
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2  # of Linux's timerfd.h
NEVER = (1 << 63) - 1  # seconds since 1970


@contextmanager
def watched(stepped: Callable[[float], None]) -> Iterator[None]:
    """Meanwhile, call with the seconds by which the clock went ahead, from a thread, whenever it is set.

    That a machine wakes up counts, too: its clock went on without it. Where no such timer is to be had, none is called.
    """
    timer = _timer()
    if timer is None:
        yield
        return
    end = os.eventfd(0, os.EFD_CLOEXEC)
    thread = Thread(target=_watch, args=(timer, end, _lead(), stepped), name="clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(end, 1)
        thread.join()
        os.close(end)
        os.close(timer)


def _watch(timer: int, end: int, before: float, stepped: Callable[[float], None]) -> None:
    poll = select.poll()
    for each in (timer, end):
        poll.register(each, select.POLLIN)
    while end not in dict(poll.poll()):
        with suppress(OSError):  # ECANCELED: the clock was set. Reading is all it takes to be told the next time
            os.read(timer, 8)
        before, last = _lead(), before
        stepped(before - last)


def _lead() -> float:
    """Seconds by which the clock is ahead of one that nobody sets; who is held up between the two reads too few."""
    return max(time.time() - time.monotonic() for _ in range(3))


def _timer() -> int | None:
    """One that waits for ever, unless the clock is set; None if this is no Linux, or it refuses."""
    libc = ctypes.CDLL(None)  # Python has it from 3.13 on
    if not hasattr(libc, "timerfd_create"):
        return None
    timer = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        return None
    times = (ctypes.c_long * 4)(0, 0, NEVER, 0)  # struct itimerspec: the interval, and when first
    if libc.timerfd_settime(timer, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, times, None):
        os.close(timer)
        return None
    return int(timer)
