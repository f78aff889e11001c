# SPDX-License-Identifier: Apache-2.0
import pytest

from blipstream_client.bulk.progress import RECENT_SECONDS, Rate, left, per_second
from blipstream_client.bulk.summary import Summary


class Run:
    """A run whose time is told to it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.summary = Summary(succeeded=500)  # of an earlier run
        self.rate = Rate(self.summary, lambda: self.now)

    def go(self, seconds: int, rows: int) -> float:
        """The rate after so many seconds, in each of which so many rows come in a burst."""
        for _ in range(seconds):
            self.now += 1
            for _ in range(rows):
                self.summary.succeeded += 1
                self.rate()
        return self.rate()


def test_the_rate_is_that_of_the_recent_past() -> None:
    run = Run()
    assert run.go(100, 20) == pytest.approx(20, rel=0.05)
    assert run.go(int(RECENT_SECONDS) + 1, 5) == pytest.approx(5, rel=0.05)


def test_a_pause_is_forgotten_soon_after_it() -> None:
    run = Run()
    run.go(100, 20)
    assert run.go(600, 0) < 1.1
    run.go(int(RECENT_SECONDS), 20)
    assert run.go(2, 20) == pytest.approx(20, rel=0.1)


def test_rows_that_come_seldom_have_a_rate() -> None:
    run = Run()
    for _ in range(5):
        run.go(89, 0)
        rate = run.go(1, 1)
    assert rate == pytest.approx(1 / 90, rel=0.1)
    assert run.go(80, 0) == pytest.approx(1 / 80, rel=0.1)


def test_the_rate_in_few_characters() -> None:
    assert (per_second(1234.5), per_second(12.34), per_second(0.26)) == ("1234/s", "12/s", "0.3/s")


def test_what_is_left() -> None:
    assert left(3723, 1.0) == "1:02:03"
    assert left(10, 0.0) == "-:--:--"
    assert left(None, 5.0) == ""
