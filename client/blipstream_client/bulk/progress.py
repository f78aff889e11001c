# SPDX-License-Identifier: Apache-2.0
"""Progress: a bar on a terminal if rich is installed, else a line every few seconds."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.summary import Summary

LINE_SECONDS = 10.0
RECENT_SECONDS = 30.0  # what the rate is taken over
SAMPLE_SECONDS = 1.0  # at least between two samples: rows come in bursts
BAR_COLUMNS = 20  # so that a million images leave the line within 80

Show = Callable[[], None]


@contextmanager
def progress(summary: Summary, limit: Limit, count: Callable[[], int | None]) -> Iterator[Show]:
    """A function to call after each row."""
    total = count() if sys.stderr.isatty() else 0
    if total == 0:  # nobody reads along, or there is nothing to show
        yield lines(summary, limit)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text
    except ImportError:
        yield lines(summary, limit)
        return

    class Pace(ProgressColumn):
        """The rate, which is asked for again each time that the bar is drawn, and what is left at this rate."""

        def __init__(self) -> None:
            super().__init__()
            self._rate = Rate(summary)

        def render(self, task: Task) -> Text:
            rate = self._rate()
            return Text(f"{per_second(rate)} {left(task.remaining, rate)}", style="progress.remaining")

    columns = (BarColumn(BAR_COLUMNS), MofNCompleteColumn(), Pace(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=summary.rows)

        def show() -> None:
            failed = f"{summary.failures:,} failed, " if summary.failures else ""
            bar.update(task, completed=summary.rows, description=f"{failed}{limit.in_flight} in flight")

        yield show


class Rate:
    """Rows a second in the recent past. So a pause is forgotten soon after it."""

    def __init__(self, summary: Summary, clock: Callable[[], float] = time.monotonic) -> None:
        self._summary = summary
        self._clock = clock
        self._samples = deque([(clock(), summary.rows)])  # times and numbers of rows

    def __call__(self) -> float:
        """The rate now: over RECENT_SECONDS, or further back if no row has come since."""
        now, rows = self._clock(), self._summary.rows
        while len(self._samples) > 1 and self._samples[1][0] <= now - RECENT_SECONDS and self._samples[1][1] < rows:
            self._samples.popleft()
        began, before = self._samples[0]
        if now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, rows))
        return (rows - before) / max(now - began, 1e-9)


def per_second(rate: float) -> str:
    """The rate in few characters."""
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def left(rows: float | None, rate: float) -> str:
    """The time that so many rows take, as 1:02:03. Empty if their number is unknown."""
    if rows is None:
        return ""
    return str(timedelta(seconds=int(rows / rate))) if rate else "-:--:--"


def lines(summary: Summary, limit: Limit) -> Show:
    """A line on standard error every few seconds."""
    rate, last = Rate(summary), time.monotonic()

    def show() -> None:
        nonlocal last
        now = rate()
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            done = f"{summary.rows:,} done, {summary.failures:,} failed"
            print(f"{done}, {per_second(now)}, {limit.in_flight} in flight", file=sys.stderr, flush=True)

    return show
