# SPDX-License-Identifier: Apache-2.0
"""The models' metrics for Prometheus.

Triton exports them: `metric_family` is its pb_utils.MetricFamily, with which they are made.
"""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from blipstream.serving.telemetry import COUNTER, RESULTS

if TYPE_CHECKING:  # a model that does not decode needs no engine
    from blipstream.decoding.scheduler import Scheduler

STEPS, ROWS, WAITING = "blipstream_steps_total", "blipstream_rows", "blipstream_waiting"
STEPS_MEAN = "Steps of a decoder, or batches of texts that the matcher has read"
WAITING_MEANS = "Requests that wait in a model's own queue; in a decoder's, for rows"
BUCKETS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]  # seconds


class RequestCounter:
    """How many of a model's requests have ended, by result."""

    def __init__(self, metric_family: Any, model: str) -> None:  # noqa: ANN401
        self._family = metric_family(
            name=COUNTER, description="Requests that have ended, by result", kind=metric_family.COUNTER
        )
        self._metrics = {name: self._family.Metric(labels={"model": model, "result": name}) for name in RESULTS}
        self._exported: Counter[str] = Counter()
        self._updating = Lock()

    def update(self, results: Mapping[str, int]) -> None:
        """Export what was counted since the last update. What cannot be exported now is exported later.

        That happens where shared memory is full, and must not fail a request.
        """
        with self._updating, suppress(Exception):
            for result, count in results.items():
                if count > self._exported[result]:
                    self._metrics[result].increment(count - self._exported[result])
                    self._exported[result] = count


class WaitingGauge:
    """How many requests wait in a model's own queue. The model's instances are processes, and add up to one number."""

    def __init__(self, metric_family: Any, model: str) -> None:  # noqa: ANN401
        self._family = metric_family(name=WAITING, description=WAITING_MEANS, kind=metric_family.GAUGE)
        self._metric = self._family.Metric(labels={"model": model})
        self._exported = 0
        self._updating = Lock()

    def update(self, waiting: int) -> None:
        """Export how many wait now. What cannot be exported now is exported with the next update."""
        with self._updating, suppress(Exception):
            if waiting != self._exported:
                self._metric.increment(waiting - self._exported)
                self._exported = waiting


class DecodingMetrics:
    """What a scheduler does."""

    def __init__(self, metric_family: Any, model: str) -> None:  # noqa: ANN401
        def metric(kind: int, name: str, description: str, **more: Any) -> Any:  # noqa: ANN401
            made = metric_family(name=name, description=description, kind=kind)
            self._families.append(made)  # a metric ends with its family
            return made.Metric(labels={"model": model}, **more)

        self._families: list[Any] = []
        self._rows = metric(metric_family.GAUGE, ROWS, "Captions under way, each beam counted")
        self._waiting = metric(metric_family.GAUGE, WAITING, WAITING_MEANS)
        self._steps = metric(metric_family.COUNTER, STEPS, STEPS_MEAN)
        self._tokens = metric(metric_family.COUNTER, "blipstream_tokens_total", "Tokens generated")
        self._first_text = metric(
            metric_family.HISTOGRAM,
            "blipstream_first_text_seconds",
            "From a request's arrival to its first text",
            buckets=BUCKETS,
        )
        self._next_text = metric(
            metric_family.HISTOGRAM,
            "blipstream_next_text_seconds",
            "From one text of a request to the next",
            buckets=BUCKETS,
        )
        self._exported = (0, 0, 0, 0)  # steps, tokens, rows, waiting
        self._export(0, 0, 0, 0)

    def update(self, scheduler: "Scheduler") -> None:
        """Export what it is doing, and what it has done since the last update."""
        now = (scheduler.num_steps, scheduler.num_tokens, scheduler.engine.rows, scheduler.num_waiting)
        if now != self._exported:
            self._export(*now)

    def _export(self, steps: int, tokens: int, rows: int, waiting: int) -> None:
        self._steps.increment(steps - self._exported[0])
        self._tokens.increment(tokens - self._exported[1])
        self._rows.set(rows)
        self._waiting.set(waiting)
        self._exported = (steps, tokens, rows, waiting)

    def text_timer(self) -> "TextTimer":
        """A timer for one request, which has arrived now."""
        return TextTimer(self._first_text, self._next_text)


class MatchingMetrics:
    """What a matcher does."""

    def __init__(self, metric_family: Any, model: str) -> None:  # noqa: ANN401
        self._waiting = WaitingGauge(metric_family, model)
        counters = ((STEPS, STEPS_MEAN), ("blipstream_texts_total", "Texts read, with an image or alone"))
        self._families = [
            metric_family(name=name, description=meaning, kind=metric_family.COUNTER) for name, meaning in counters
        ]
        self._steps, self._texts = (family.Metric(labels={"model": model}) for family in self._families)

    def count(self, texts: int) -> None:
        """Count a batch of texts."""
        with suppress(Exception):  # shared memory may be full
            self._steps.increment(1)
            self._texts.increment(texts)

    def update(self, waiting: int) -> None:
        """Export how many requests wait now."""
        self._waiting.update(waiting)


class TextTimer:
    """Measures when the texts of one request come."""

    def __init__(self, first_text: Any, next_text: Any) -> None:  # noqa: ANN401
        self._since = time.monotonic()
        self._metric, self._next_text = first_text, next_text

    def observe(self, text: str) -> None:
        """A text has come, unless it is empty."""
        if not text:
            return
        now = time.monotonic()
        self._metric.observe(now - self._since)
        self._since, self._metric = now, self._next_text
