# SPDX-License-Identifier: Apache-2.0
"""The scheduler as a Triton model runs it: with backpressure, metrics and telemetry."""

from typing import Any

from blipstream.decoding import Engine
from blipstream.decoding.scheduler import MAX_WAITING, Scheduler
from blipstream.serving.backpressure import Backpressure
from blipstream.serving.metrics import Metrics
from blipstream.serving.telemetry import Journal

ROOM = 64  # images that may be on their way here: one more of the encoder's largest batches, lest it runs dry


class DecodingService:
    """What the models share that decode."""

    def __init__(
        self,
        engine: Engine,
        family: Any,  # noqa: ANN401
        model: str,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`family` makes metrics, as Triton's pb_utils.MetricFamily does. Raises ServerError as Journal does."""
        self.engine = engine
        self.journal = Journal(model)
        self.metrics = Metrics(family, model, self.journal)
        self._backpressure = Backpressure()
        self._backpressure.add_room(ROOM)
        self.scheduler = Scheduler(engine, max_waiting, self.metrics.watch, self.journal.record)

    def arrive(self, images: int) -> None:
        """Count images that have come as far as the decoder, whatever becomes of them."""
        self._backpressure.take(images)

    def wait_for_room(self) -> None:
        """Return once a request would not be refused. Until then, tell the stages before to take up less."""
        if self.scheduler.is_full:
            with self._backpressure.full():
                self.scheduler.wait_for_room()

    def close(self) -> None:
        """Answer what was submitted, send the last spans, then end."""
        self.scheduler.close()
        self.journal.close()
