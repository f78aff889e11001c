# SPDX-License-Identifier: Apache-2.0
"""Compare in-flight batching with batches that run to completion: one engine, the same Poisson arrivals, in turns.

python loadtest/inflight.py --rate 40

Most captions are short and few are long, as in `LENGTHS`. Latency is the time from a request's arrival to its caption.
"""

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from blipstream.decoding import Engine, Request, load_engine
from blipstream.decoding.scheduler import Scheduler
from blipstream.errors import BlipstreamError
from blipstream.finite import FiniteRange
from blipstream.options import DecodingOptions
from blipstream_loadtest import options as shared

LENGTHS = (4,) * 7 + (12,) * 2 + (60,)  # tokens, of which each request draws one evenly
MAX_BATCH = 64  # requests in a batch that runs to completion

Arrival = tuple[float, int]  # seconds from the start, tokens


class Driver(ABC):
    """Takes requests and calls back when each has its captions."""

    @abstractmethod
    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """Take a request, from any thread; call `done` when its caption is there."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. All requests must be done."""


class InFlight(Driver):
    """Requests join and leave the batch at any step, as in our decoder."""

    def __init__(self, engine: Engine) -> None:
        self._scheduler = Scheduler(engine, max_waiting=1 << 20)

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """Give the request to the scheduler."""
        self._scheduler.submit(request, lambda piece: done() if piece.finish_reason else None)

    def close(self) -> None:
        """Close the scheduler."""
        self._scheduler.close()


class ToCompletion(Driver):
    """A batch runs until its last caption, as with Triton's dynamic batcher. Later requests wait for that."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: list[tuple[Request, Callable[[], None]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """Put the request into the next batch."""
        with self._changed:
            self._waiting.append((request, done))
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if not batch:
                return
            self._engine.generate(request for request, _ in batch)
            for _, done in batch:
                done()


DRIVERS: dict[str, Callable[[Engine], Driver]] = {"to completion": ToCompletion, "in flight": InFlight}


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[Arrival]:
    """Draw arrivals of a Poisson process, `rate` a second; the same ones for a seed."""
    rng = random.Random(seed)  # noqa: S311
    moment = rng.expovariate(rate)
    while moment < seconds:
        yield moment, rng.choice(LENGTHS)
        moment += rng.expovariate(rate)


def measure(driver: Driver, engine: Engine, expected: list[Arrival]) -> tuple[dict[int, list[float]], float]:
    """Run the arrivals; return the seconds that each caption took, by its length, and captions a second."""
    latencies: dict[int, list[float]] = defaultdict(list)
    left = threading.Semaphore(0)
    embeds = torch.randn(engine.image_embeds_shape, generator=torch.Generator().manual_seed(0))

    def done(length: int, arrived: float) -> None:
        latencies[length].append(time.monotonic() - arrived)
        left.release()

    began = time.monotonic()
    for moment, length in expected:
        time.sleep(max(began + moment - time.monotonic(), 0))
        options = DecodingOptions(max_tokens=length, min_tokens=length)
        driver.submit(engine.request(embeds, options), partial(done, length, began + moment))
    for _ in expected:
        left.acquire()
    rate = len(expected) / (time.monotonic() - began)
    driver.close()
    return latencies, rate


@click.command(context_settings=shared.SETTINGS)
@shared.repository("Model repository with the decoder.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--rate", type=FiniteRange(min=0, min_open=True), default=40.0, help="Requests a second.")
@click.option("--seconds", type=FiniteRange(min=0, min_open=True), default=20.0, help="Length of a turn.")
@click.option("--rounds", default=2, help="Turns of each way to batch.")
def main(repository: Path, device: str, rate: float, seconds: float, rounds: int) -> None:
    """Show throughput, and latency by length, for both ways to batch."""
    try:
        engine = load_engine(repository / "decoder/1/artifact", device, served=True)
    except BlipstreamError as exc:
        raise click.ClickException(str(exc)) from exc
    lengths = sorted(set(LENGTHS))
    table = Table("batches", "captions/s", *(f"{length} tokens: p50, p99 ms" for length in lengths))
    for seed in range(rounds):
        for name, driver in DRIVERS.items():
            latencies, served = measure(driver(engine), engine, list(arrivals(rate, seconds, seed)))
            row = [[f"{part:.0f}" for part in np.percentile(latencies[n], [50, 99]) * 1000] for n in lengths]
            table.add_row(name, f"{served:.1f}", *(", ".join(parts) for parts in row))
    Console().print(table)


if __name__ == "__main__":
    main()
