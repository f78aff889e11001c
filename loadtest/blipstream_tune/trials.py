# SPDX-License-Identifier: Apache-2.0
"""A trial: some settings, served and measured with more and more requests in flight."""

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blipstream.server.triton import TritonServer
from blipstream_client import BlipstreamError as ClientError
from blipstream_client import Client
from blipstream_loadtest import mix
from blipstream_tune.settings import VARIANT, Settings, write_settings

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64)
WARM_UP = 0.25  # of a measurement's time, added to it and not counted
HOPELESS = 2.0  # multiple of the SLO's p95 that ends a trial: with more requests in flight, p95 only grows
TIMEOUT = 60.0  # seconds for a request


@dataclass(frozen=True)
class Point:
    """What was measured with so many requests in flight."""

    in_flight: int
    rps: float
    p95_ms: float  # of the answers; 0 if there are none
    errors: int


@dataclass(frozen=True)
class Trial:
    """What was measured of some settings."""

    settings: Settings
    points: list[Point] = field(default_factory=list)

    @property
    def whole(self) -> list[Point]:
        """The points at which every request was answered."""
        return [point for point in self.points if not point.errors]

    def best(self, p95_ms: float) -> Point | None:
        """The point with the most requests a second within the SLO, or None."""
        good = [point for point in self.whole if point.p95_ms <= p95_ms]
        return max(good, key=lambda point: point.rps, default=None)

    def score(self, p95_ms: float) -> float:
        """Requests a second within the SLO. If no point meets it, the lowest p95, with a minus sign."""
        best = self.best(p95_ms)
        return best.rps if best else -min((point.p95_ms for point in self.whole), default=math.inf)


def measure(url: str, chosen: mix.Mix, in_flight: int, seconds: float) -> Point:
    """Keep so many requests in flight for so many seconds, after a warm-up."""
    latencies: list[float] = []
    errors: list[ClientError] = []
    with Client(url, timeout=TIMEOUT) as client:
        began = time.perf_counter() + seconds * WARM_UP
        ends = began + seconds

        def ask(seed: int) -> None:
            rng = random.Random(seed)  # noqa: S311
            while (start := time.perf_counter()) < ends:
                request = chosen.draw(rng)
                try:
                    request.ask(client)
                except ClientError as exc:
                    errors.append(exc)
                    continue
                done = time.perf_counter()
                if began <= done:
                    latencies.append((done - start) * 1000)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # The time goes on until the last answer, and that answer counts; else slow ones would be left out
    elapsed = time.perf_counter() - began
    return Point(in_flight, len(latencies) / elapsed, float(np.percentile(latencies or [0], 95)), len(errors))


def run_trial(
    repository: Path,
    config: str,
    settings: Settings,
    chosen: mix.Mix,
    p95_ms: float,
    seconds: float,
    most: int,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Trial:
    """Serve the settings and measure them with more and more requests in flight, up to `most`.

    Tells `say` what it does.
    """
    write_settings(repository, config, settings)
    points: list[Point] = []
    with TritonServer(repository, config=VARIANT, http_port=0, grpc_port=0, metrics_port=0) as server:
        with Client(server.grpc_url, timeout=TIMEOUT) as client:
            for request in chosen.one_of_each():
                request.ask(client)
        for in_flight in (level for level in IN_FLIGHT if level <= most):
            say(f"measuring {in_flight} in flight")
            points.append(measure(server.grpc_url, chosen, in_flight, seconds))
            if points[-1].p95_ms > HOPELESS * p95_ms:
                break
    return Trial(settings, points)


def describe(trial: Trial, p95_ms: float) -> str:
    """The best of a trial in one line."""
    best = trial.best(p95_ms)
    if best:
        return f"{best.rps:8.2f}/s, {best.in_flight:2} in flight, p95 {best.p95_ms:6.0f} ms"
    if not trial.whole:
        return f"{'requests fail under any load':>38}"
    return f"{'misses the SLO: p95 at best':>28} {-trial.score(p95_ms):6.0f} ms"
