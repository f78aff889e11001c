# SPDX-License-Identifier: Apache-2.0
"""Items -> rows in a sink, in order, with as many requests in flight as the server takes."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import chain
from typing import TypeAlias

from blipstream_client._errors import without_frames
from blipstream_client._exceptions import InvalidImage, InvalidRequest
from blipstream_client._files import MAX_BYTES
from blipstream_client._text import excerpt, quoted
from blipstream_client.bulk.items import Item
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.rows import as_utf8
from blipstream_client.bulk.sinks import Sink
from blipstream_client.bulk.summary import Summary
from blipstream_client.bulk.worker import Finished, Worker

ROWS_AHEAD = 2048  # finished rows that may wait for an earlier one
CONFIRM_SECONDS = 1.0  # between checks of the server's checkpoint: rows are held back until the next one
DRAIN_SECONDS = 5.0  # for requests in flight when rows cannot be written any more


Image: TypeAlias = bytes | str | InvalidImage  # bytes, a path or URL, or why there is no image


def skip_written(items: Iterator[Item], sink: Sink, summary: Summary) -> Iterator[Item]:
    """The items, or their texts, that have no rows in the sink. Raises InvalidRequest if it has rows of others."""
    item, missing = None, 0  # rows of the item
    for row in sink.recover(summary.needs):
        if not missing:
            item = next(items, None)
            missing = item.rows if item else 0
        if item is None or item.name != row["name"]:
            found = excerpt(item.name) if item else "nothing more"
            raise InvalidRequest(
                f"The images have changed: {sink.path} goes on with {excerpt(row['name'])}, and here comes {found};"
                " use the same images to go on, or another --output"
            )
        text = summary.text
        if item.texts and (row[text] or "") != as_utf8(item.texts[-missing]):  # empty cells of CSV are None
            raise InvalidRequest(
                f"The {text}s have changed: {sink.path} goes on with {quoted(row[text])} for {excerpt(item.name)},"
                f" and here comes {quoted(item.texts[-missing])}; use the same {text}s to go on, or another --output"
            )
        missing -= 1
        summary.found += 1
        summary.count({**row, "error": row["error"] and f"see {sink.path}"})
    return chain([replace(item, texts=item.texts[-missing:])] if item and missing else [], items)


class Runner:
    """Has rows made of items, and writes them in order."""

    def __init__(self, worker: Worker, limit: Limit, most: int, sink: Sink, summary: Summary) -> None:
        self._worker = worker
        self._limit = limit
        self._executor = ThreadPoolExecutor(most, thread_name_prefix="blipstream")
        self._sink = sink
        self._summary = summary
        self._pending: deque[Future[Finished]] = deque()
        self._held: list[Finished] = []  # until their endpoints are confirmed
        self._confirmed = time.monotonic()
        self._unreadable: InvalidRequest | None = None  # why no more items can be read

    def run(self, items: Iterable[Item], show: Callable[[], None]) -> None:
        """Write a row for each item, and call `show` after each.

        Raises BlipstreamError if the server cannot be reached any more, or has another checkpoint. Written rows stay.
        Rows that are not confirmed are not written. If an item ends the run, those before it have rows.
        """
        try:
            for name, texts, image in self._images(items):
                while not self._limit.acquire(CONFIRM_SECONDS):
                    self._collect(show)
                size = _size(image)
                self._limit.hold(size)
                self._pending.append(self._executor.submit(self._work, name, texts, image, size))
                self._collect(show)
                while len(self._pending) > ROWS_AHEAD:
                    self._wait_and_collect(show)
            while self._pending:
                self._wait_and_collect(show)
            self._write_held(show)
            if self._unreadable is not None:
                raise self._unreadable
        except OSError:  # the answers are lost, but hanging up on a healthy server can harm it
            self._executor.shutdown(wait=False, cancel_futures=True)
            wait(self._pending, DRAIN_SECONDS)
            raise
        finally:
            try:
                self._sink.close()  # first: Ctrl-C may be pressed again
                self._summary.is_safe = True
            finally:
                self._worker.close()  # so that nothing waits for requests in flight
                self._executor.shutdown(wait=False, cancel_futures=True)

    def _images(self, items: Iterable[Item]) -> Iterator[tuple[str, Sequence[str], Image]]:
        """The names, texts and images, up to the first item after which nothing can be read."""
        try:
            for item in items:
                yield item.name, item.texts, _loaded(item)
        except InvalidRequest as exc:
            self._unreadable = exc

    def _work(self, name: str, texts: Sequence[str], image: Image, size: int) -> Finished:
        try:
            return self._worker.rows(name, image, texts)
        finally:
            self._limit.release(size)

    def _wait_and_collect(self, show: Callable[[], None]) -> None:
        wait([self._pending[0]], CONFIRM_SECONDS)
        self._collect(show)

    def _collect(self, show: Callable[[], None]) -> None:
        """Take finished rows, and write them from time to time."""
        while self._pending and self._pending[0].done():
            self._held.append(self._pending.popleft().result())
        if len(self._held) >= ROWS_AHEAD or time.monotonic() - self._confirmed >= CONFIRM_SECONDS:
            self._write_held(show)

    def _write_held(self, show: Callable[[], None]) -> None:
        self._worker.confirm({endpoint for finished in self._held for endpoint in finished.endpoints})
        self._confirmed = time.monotonic()
        held, self._held = self._held, []
        for row in (row for finished in held for row in finished.rows):
            self._sink.write(row)
            self._summary.count(row)
            show()


def _loaded(item: Item) -> Image:
    try:
        return item.load()
    except InvalidImage as exc:
        without_frames(exc)
        return exc


def _size(image: Image) -> int:
    """The image's size in bytes. 0 for a URL, whose size is not known yet."""
    if isinstance(image, bytes):
        return len(image)
    try:
        return min(os.path.getsize(str(image)), MAX_BYTES)  # noqa: PTH202
    except (OSError, ValueError):  # an error, a URL, or a missing file
        return 0
