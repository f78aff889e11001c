# SPDX-License-Identifier: Apache-2.0
"""Clients that keep a server busy, each in a process of its own, since one Python process can be slower than a GPU."""

import os
import time
from collections.abc import Iterable, Iterator
from itertools import cycle

from blipstream_bench.plans import NEW_TOKENS
from blipstream_bench.processes import single_process
from blipstream_client import BlipstreamError, Client

TIMEOUT = 600.0  # seconds for a request


class ClientProcesses:
    """Some processes with a client each, which caption the same images again and again."""

    def __init__(self, url: str, images: list[bytes], number: int) -> None:
        """Start them. Nothing is sent yet."""
        self._pools = [single_process() for _ in range(number)]
        for opened in [pool.submit(_open, url, images) for pool in self._pools]:
            opened.result()

    def caption_until(self, deadline: float, beams: int, in_flight: int) -> list[int]:
        """Keep `in_flight` requests under way, shared out evenly, until time.perf_counter() reaches the deadline.

        Returns how many captions each process got that had a share. All send their share at least once.
        """
        shares = shared_out(in_flight, len(self._pools))
        counts = [
            pool.submit(_caption_until, deadline, beams, share)
            for pool, share in zip(self._pools, shares, strict=True)
            if share
        ]
        return [count.result() for count in counts]

    def pids(self) -> list[int]:
        """The number of each process."""
        return [pool.submit(os.getpid).result() for pool in self._pools]

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


def shared_out(total: int, parts: int) -> list[int]:
    """A total in parts that are whole and as equal as can be."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def captions(client: Client, images: Iterable[bytes], beams: int, in_flight: int) -> Iterator[str]:
    """The caption of each image, as the benchmark asks for it. Raises the error of an image that gets none."""
    for caption in client.caption_many(
        images, max_in_flight=in_flight, num_beams=beams, min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS
    ):
        if isinstance(caption, BlipstreamError):
            raise caption
        yield caption.text


def until(images: list[bytes], batch: int, deadline: float) -> Iterator[bytes]:
    """Repeat the images, in whole batches, until time.perf_counter() reaches the deadline."""
    endless = cycle(images)
    while True:
        for _ in range(batch):
            yield next(endless)
        if time.perf_counter() >= deadline:
            return


# in the processes

_client: Client
_images: list[bytes]


def _open(url: str, images: list[bytes]) -> None:
    global _client, _images
    _client, _images = Client(url, timeout=TIMEOUT), images


def _caption_until(deadline: float, beams: int, in_flight: int) -> int:
    return sum(1 for _ in captions(_client, until(_images, in_flight, deadline), beams, in_flight))
