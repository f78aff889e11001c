# SPDX-License-Identifier: Apache-2.0
"""A whole run: what is asked for, checked against what was begun, done, and summed up."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from blipstream_client._base import DEFAULT_MODEL
from blipstream_client._contract import Options, option_tensors
from blipstream_client._exceptions import BlipstreamError, InvalidRequest
from blipstream_client.bulk.captioner import Captioner, OtherCheckpoint
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.progress import progress
from blipstream_client.bulk.runner import Runner, Summary, skip_written
from blipstream_client.bulk.sinks import open_sink
from blipstream_client.bulk.sources import Sources

DEFAULT_MAX_IN_FLIGHT = 128
DEFAULT_TIMEOUT = 300.0  # seconds for an image, with all its retries: a server may be restarted meanwhile
DEFAULT_RETRIES = 100

M_ARENA_MAX = -8  # of glibc's malloc.h


class Interrupted(BlipstreamError):
    """The run ended before its last image, and the same command goes on with it."""


def run(
    inputs: Sequence[str],
    output: str,
    *,
    connection: dict[str, Any],
    options: Options,
    column: str | None = None,
    allow_local_paths: bool = False,
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
) -> Summary:
    """Write a row for each image to the output, or those that it lacks. Raises BlipstreamError."""
    option_tensors(options)  # refuses what is no value
    sources = Sources(inputs, column, allow_local_paths)
    sources.check()
    sink, limit, summary = open_sink(output), Limit(max_in_flight), Summary()
    cannot_write = translated(f"Cannot write to {output} (the same command goes on once that is mended)", OSError)
    with Captioner(limit, options, **connection) as captioner, cannot_write, sink.lock():
        sink.begin(
            {
                "images": list(inputs),
                "column": column,
                "model": connection.get("model", DEFAULT_MODEL),
                "options": {name: value for name, value in options.items() if value is not None},
                "checkpoint": captioner.checkpoint,
                "max_side": connection.get("max_side"),
            }
        )
        images = sources.items()
        skip_written(images, sink, summary)
        with progress(summary, limit, sources.count) as show:
            try:
                Runner(captioner, limit, max_in_flight, sink, summary).run(images, show)
            except OtherCheckpoint as exc:
                raise sink.differs("checkpoint", captioner.checkpoint, exc.found) from exc
            except BlipstreamError as exc:
                raise Interrupted(f"{exc} ({summary.rows:,} rows are done; the same command goes on)") from exc
    summary.left_out = str(sources.left_out) if sources.left_out else ""
    if not summary.rows:
        raise InvalidRequest(f"There is no image to caption{f': {summary.left_out}' if summary.left_out else ''}")
    return summary


def share_one_heap() -> None:
    """Have threads that start from now on take their memory from the heap that there is.

    Else glibc gives them up to eight heaps for each core, all of which get holes and grow a little for hours.
    """
    with suppress(AttributeError, TypeError):  # no glibc; on Windows not even CDLL(None)
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
