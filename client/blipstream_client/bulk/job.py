# SPDX-License-Identifier: Apache-2.0
"""A whole run: check the request, go on where an earlier run ended, and sum up."""

import ctypes
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from blipstream_client._exceptions import BlipstreamError, InvalidRequest
from blipstream_client._notices import say
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.items import counted
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.progress import progress
from blipstream_client.bulk.runner import Runner, skip_written
from blipstream_client.bulk.sinks import open_sink
from blipstream_client.bulk.sources import Sources
from blipstream_client.bulk.task import SummaryT, Task
from blipstream_client.bulk.transport import OtherServed
from blipstream_client.bulk.worker import Worker

DEFAULT_MAX_IN_FLIGHT = 128
DEFAULT_TIMEOUT = 300.0  # seconds for an image, with all its retries: enough for a restart of the server
DEFAULT_RETRIES = 100

M_ARENA_MAX = -8  # of glibc's malloc.h


class Interrupted(BlipstreamError):
    """The run ended before its last image. The same command goes on with it."""


def run(
    task: Task[SummaryT],
    sources: Sources,
    output: str,
    *,
    connection: dict[str, Any],
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
) -> SummaryT:
    """Write the rows of all images to the output, unless an earlier run has written them.

    Raises BlipstreamError, or KeyboardInterrupt after saying how many rows are safe.
    """
    sources.check()
    summary = task.summary()
    try:
        _run(task, sources, output, summary, connection, max_in_flight)
    except KeyboardInterrupt:
        safe = f"{counted(summary.rows, 'row')} safe in {output}" if summary.is_safe else "written rows are safe"
        say(f"Interrupted: {safe}; the same command goes on")
        raise
    summary.left_out = str(sources.left_out) if sources.left_out else ""
    if not summary.rows:
        raise InvalidRequest(f"There is no image to {task.verb}{f': {summary.left_out}' if summary.left_out else ''}")
    return summary


def _run(
    task: Task[SummaryT],
    sources: Sources,
    output: str,
    summary: SummaryT,
    connection: dict[str, Any],
    max_in_flight: int,
) -> None:
    """Write the rows, and count them in `summary`."""
    sink, limit = open_sink(output), Limit(max_in_flight)
    cannot_write = translated(f"Cannot write to {output} (the same command goes on once that is mended)", OSError)
    with Worker(limit, task, **connection) as worker:
        worker.check_options()  # before there is any output
        job = {
            **sources.named,
            "model": task.models[0],
            "options": {name: value for name, value in task.options.items() if value is not None},
            **asdict(worker.served),
            "max_side": connection.get("max_side"),
        }
        with cannot_write, sink.lock():
            sink.begin(job, task.columns)
            items = skip_written(sources.items(), sink, summary)
            with progress(summary, limit, sources.count) as show:
                try:
                    Runner(worker, limit, max_in_flight, sink, summary).run(items, show)
                except OtherServed as exc:
                    raise sink.differs(exc.what, exc.begun, exc.found) from exc
                except BlipstreamError as exc:
                    mended = "once that is mended, " if isinstance(exc, InvalidRequest) else ""
                    done = f"{summary.rows:,} rows are done; {mended}the same command goes on"
                    raise Interrupted(f"{exc} ({done})") from exc


def share_one_heap() -> None:
    """Make threads that start from now on share one heap.

    Otherwise glibc gives them up to eight heaps for each core, which fragment, and grow for hours.
    """
    with suppress(AttributeError, TypeError):  # no glibc; on Windows not even CDLL(None)
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
