# SPDX-License-Identifier: Apache-2.0
"""Progress: a bar on a terminal if rich is installed, else a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.runner import Summary

LINE_SECONDS = 10.0
BAR_COLUMNS = 20  # so that a million images leave the line within 80

Show = Callable[[], None]


@contextmanager
def progress(summary: Summary, limit: Limit, count: Callable[[], int | None]) -> Iterator[Show]:
    """A function to call after each row."""
    if not sys.stderr.isatty():
        yield lines(summary, limit)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lines(summary, limit)
        return
    columns = (
        BarColumn(BAR_COLUMNS),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        rate = Rate(summary)
        task = bar.add_task("", total=count(), completed=summary.rows, rate="")

        def show() -> None:
            failed = f"{summary.failures:,} failed, " if summary.failures else ""
            description = f"{failed}{limit.current} in flight"
            bar.update(task, completed=summary.rows, description=description, rate=f"{rate():.0f}/s")

        yield show


class Rate:
    """Rows a second since the start."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._rows = summary.rows
        self._began = time.monotonic()

    def __call__(self) -> float:
        """The rate until now."""
        return (self._summary.rows - self._rows) / max(time.monotonic() - self._began, 1e-9)


def lines(summary: Summary, limit: Limit) -> Show:
    """A line on standard error every few seconds."""
    rate, last = Rate(summary), time.monotonic()

    def show() -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            failed = f"{summary.failures:,} failed, "
            print(
                f"{summary.rows:,} done, {failed}{rate():.0f}/s, {limit.current} in flight", file=sys.stderr, flush=True
            )

    return show
