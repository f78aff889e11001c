# SPDX-License-Identifier: Apache-2.0
"""Notice at once that the system clock was set: Linux then cancels the timers that ask for it."""

import ctypes
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2  # of Linux's timerfd.h
NEVER = (1 << 63) - 1  # seconds since 1970
THREAD = "clock jumps"


@contextmanager
def watch(on_jump: Callable[[float], None]) -> Iterator[None]:
    """Inside the block, call `on_jump` from a thread whenever the clock is set, with the seconds it went ahead.

    A machine that wakes up counts too: its clock went on without it. If the system has no such timer, `on_jump` is
    never called.
    """
    timer = _timer()
    if timer is None:
        yield
        return
    end = os.eventfd(0, os.EFD_CLOEXEC)
    thread = Thread(target=_watch, args=(timer, end, _lead(), on_jump), name=THREAD, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(end, 1)
        thread.join()
        os.close(end)
        os.close(timer)


def _watch(timer: int, end: int, lead: float, on_jump: Callable[[float], None]) -> None:
    poll = select.poll()
    for each in (timer, end):
        poll.register(each, select.POLLIN)
    while end not in dict(poll.poll()):
        with suppress(OSError):  # ECANCELED: the clock was set. Reading alone re-arms the timer for the next time.
            os.read(timer, 8)
        lead, before = _lead(), lead
        on_jump(lead - before)


def _lead() -> float:
    """Seconds by which the clock is ahead of the monotonic one, which nobody sets.

    A thread that is held up between the two readings sees too few, hence the largest of three.
    """
    return max(time.time() - time.monotonic() for _ in range(3))


def _timer() -> int | None:
    """A timer that expires only if the clock is set; None if this is not Linux or the system refuses one."""
    libc = ctypes.CDLL(None)  # Python has the call itself from 3.13 on
    if not hasattr(libc, "timerfd_create"):
        return None
    timer = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        return None
    times = (ctypes.c_long * 4)(0, 0, NEVER, 0)  # struct itimerspec: the interval, and the first expiry
    if libc.timerfd_settime(timer, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, times, None):
        os.close(timer)
        return None
    return int(timer)
