# SPDX-License-Identifier: Apache-2.0
"""Jumps of the clock are noticed. No test here sets the clock, which would disturb the machine; tests/chaos may."""

import ctypes
import os
import re
import threading
from pathlib import Path
from threading import Thread

import pytest

from blipstream.server import clock_jumps


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208


def watchers() -> list[Thread]:
    return [thread for thread in threading.enumerate() if thread.name == clock_jumps.THREAD]


def test_the_timer_waits_for_the_clock_to_be_set() -> None:
    timer = clock_jumps._timer()
    assert timer is not None
    facts = dict(re.findall(r"(.+):\s*(.+)", Path(f"/proc/self/fdinfo/{timer}").read_text()))
    assert (facts["clockid"], facts["ticks"], facts["settime flags"]) == ("0", "0", "03")
    assert int(re.findall(r"\d+", facts["it_value"])[0]) > 100 * 365 * 86400
    with pytest.raises(BlockingIOError):
        os.read(timer, 8)
    os.close(timer)


def test_nothing_is_left() -> None:
    before = descriptors()
    for _ in range(3):
        with clock_jumps.watch(lambda seconds: pytest.fail(f"{seconds}")):
            assert len(watchers()) == 1
            assert len(descriptors()) == len(before) + 2
        assert not watchers()
        assert descriptors() == before


def test_each_jump_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timer and clocks that the test sets."""
    timer, now, jumps = os.eventfd(0), 1_000_000.0, list[float]()
    monkeypatch.setattr(clock_jumps, "_timer", lambda: timer)
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.monotonic", lambda: 5000.0)
    with clock_jumps.watch(jumps.append):
        for number, seconds in enumerate((100.0, -250.0, 0.0, 0.5), 1):
            now += seconds
            os.eventfd_write(timer, 1)
            while len(jumps) < number:
                threading.Event().wait(0.01)
    assert jumps == [100.0, -250.0, 0.0, 0.5]


@pytest.mark.parametrize("call", ["timerfd_create", "timerfd_settime"])
def test_without_a_timer_nobody_is_told(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Such as in a sandbox that refuses it."""
    library = ctypes.CDLL(None)
    monkeypatch.setattr(library, call, lambda *_: -1)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    before = descriptors()
    with clock_jumps.watch(lambda seconds: pytest.fail(f"{seconds}")):
        assert not watchers()
    assert descriptors() == before
