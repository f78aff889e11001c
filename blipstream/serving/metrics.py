# SPDX-License-Identifier: Apache-2.0
"""What a model tells Prometheus, through the metrics of whoever hosts it.

`family` makes them, as Triton's pb_utils.MetricFamily does.
"""

import time
from collections import Counter
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from blipstream.serving.telemetry import COUNTER, RESULTS, Journal

if TYPE_CHECKING:  # a model that does not decode needs no engine
    from blipstream.decoding.scheduler import Piece, Scheduler

STEPS, ROWS, WAITING = "blipstream_steps_total", "blipstream_rows", "blipstream_waiting"
BUCKETS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]  # seconds


class Results:
    """How many of a model's requests have ended, and how."""

    def __init__(self, family: Any, model: str) -> None:  # noqa: ANN401
        self._family = family(name=COUNTER, description="Requests that have ended, by result", kind=family.COUNTER)
        self._metrics = {name: self._family.Metric(labels={"model": model, "result": name}) for name in RESULTS}
        self._told: Counter[str] = Counter()
        self._telling = Lock()

    def tell(self, journal: Journal) -> None:
        """Report what has ended since the last time; what cannot be reported now, is with the next."""
        with self._telling, suppress(Exception):  # as where shared memory is full, which is to fail no request
            for result, count in journal.results.items():
                if count > self._told[result]:
                    self._metrics[result].increment(count - self._told[result])
                    self._told[result] = count


class Metrics:
    """What a scheduler does."""

    def __init__(self, family: Any, model: str, journal: Journal) -> None:  # noqa: ANN401
        def metric(kind: int, name: str, description: str, **more: Any) -> Any:  # noqa: ANN401
            made = family(name=name, description=description, kind=kind)
            self._families.append(made)  # a metric ends with its family
            return made.Metric(labels={"model": model}, **more)

        self._families: list[Any] = []
        self._rows = metric(family.GAUGE, ROWS, "Captions under way, each beam counted")
        self._waiting = metric(family.GAUGE, WAITING, "Requests that wait for rows")
        self._steps = metric(family.COUNTER, STEPS, "Steps of the decoder")
        self._tokens = metric(family.COUNTER, "blipstream_tokens_total", "Tokens generated")
        self._first = metric(
            family.HISTOGRAM,
            "blipstream_first_text_seconds",
            "From a request's arrival to its first text",
            buckets=BUCKETS,
        )
        self._next = metric(
            family.HISTOGRAM, "blipstream_next_text_seconds", "From one text of a request to the next", buckets=BUCKETS
        )
        self._results, self._journal = Results(family, model), journal
        self._told = (0, 0, 0, 0)  # steps, tokens, rows, waiting
        self._tell(0, 0, 0, 0)

    def watch(self, scheduler: "Scheduler") -> None:
        """Report what it is doing and what it has done since the last time."""
        now = (scheduler.num_steps, scheduler.num_tokens, scheduler.engine.rows, scheduler.num_waiting)
        if now != self._told:
            self._tell(*now)
        self._results.tell(self._journal)

    def _tell(self, steps: int, tokens: int, rows: int, waiting: int) -> None:
        self._steps.increment(steps - self._told[0])
        self._tokens.increment(tokens - self._told[1])
        self._rows.set(rows)
        self._waiting.set(waiting)
        self._told = (steps, tokens, rows, waiting)

    def stopwatch(self) -> "Stopwatch":
        """For one request."""
        return Stopwatch(self._first, self._next)


class Stopwatch:
    """Times the texts of one request, from its arrival on."""

    def __init__(self, first: Any, following: Any) -> None:  # noqa: ANN401
        self._last = time.monotonic()
        self._metric, self._following = first, following

    def lap(self, piece: "Piece") -> None:
        """A text has come."""
        if not piece.text:
            return
        now = time.monotonic()
        self._metric.observe(now - self._last)
        self._last, self._metric = now, self._following
