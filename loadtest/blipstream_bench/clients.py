# SPDX-License-Identifier: Apache-2.0
"""Clients that keep a server busy, each in a process of its own, since one Python process can be slower than a GPU."""

import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import Any

from blipstream_bench.plans import EMBED_IMAGE, EMBED_TEXT, EXPLAIN, NEW_TOKENS, NUM_TEXTS, STRATEGIES, WORDS_OF_TEXT
from blipstream_bench.processes import single_process
from blipstream_bench.random_checkpoint import WORDS
from blipstream_client import Client

Item = bytes | str  # an encoded image, or a text that is to be embedded
Answer = Any  # a caption as str, or f32 numbers: the logits of an image's texts, or an embedding

TIMEOUT = 600.0  # seconds for a request


class ClientProcesses:
    """Some processes with a client each, which ask about the same images again and again."""

    def __init__(self, url: str, images: list[bytes], number: int) -> None:
        """Start them. Nothing is sent yet."""
        self._pools = [single_process() for _ in range(number)]
        for opened in [pool.submit(_open, url, images) for pool in self._pools]:
            opened.result()

    def answer_until(self, deadline: float, task: str, in_flight: int) -> list[int]:
        """Keep `in_flight` requests under way, shared out evenly, until time.perf_counter() reaches the deadline.

        Returns how many answers each process got that had a share. All send their share at least once.
        """
        shares = shared_out(in_flight, len(self._pools))
        counts = [
            pool.submit(_answer_until, deadline, task, share)
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


def answers(client: Client, items: Iterable[Item], task: str, in_flight: int) -> Iterator[Answer]:
    """The answer for each item, in order. Raises the error of one that gets none."""
    pending: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(in_flight) as threads:
        for item in items:
            if len(pending) == in_flight:
                yield pending.popleft().result()
            pending.append(threads.submit(_ask, client, task, item))
        while pending:
            yield pending.popleft().result()


def _ask(client: Client, task: str, item: Item) -> Answer:
    if task == EMBED_TEXT:
        return client.embed_text(str(item))
    assert isinstance(item, bytes)  # noqa: S101
    if task == EMBED_IMAGE:
        return client.embed_image(item)
    if task in NUM_TEXTS:
        return [each.logit for each in client.match(item, texts(NUM_TEXTS[task]))]
    if task == EXPLAIN:
        return client.explain(item, min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS).caption.text
    return client.caption(item, num_beams=STRATEGIES[task], min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS).text


def texts(count: int) -> list[str]:
    """So many texts of WORDS_OF_TEXT words each."""
    rng = random.Random(0)  # noqa: S311
    return [" ".join(rng.choices([*WORDS], k=WORDS_OF_TEXT)) for _ in range(count)]


def until(items: Sequence[Item], batch: int, deadline: float) -> Iterator[Item]:
    """Repeat the items, in whole batches, until time.perf_counter() reaches the deadline."""
    endless = cycle(items)
    while True:
        for _ in range(batch):
            yield next(endless)
        if time.perf_counter() >= deadline:
            return


def items(task: str, images: list[bytes]) -> Sequence[Item]:
    """What a task is asked about: the images, or as many texts."""
    return texts(len(images)) if task == EMBED_TEXT else images


# in the processes

_client: Client
_images: list[bytes]


def _open(url: str, images: list[bytes]) -> None:
    global _client, _images
    _client, _images = Client(url, timeout=TIMEOUT), images


def _answer_until(deadline: float, task: str, in_flight: int) -> int:
    return sum(1 for _ in answers(_client, until(items(task, _images), in_flight, deadline), task, in_flight))
