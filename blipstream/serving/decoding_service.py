# SPDX-License-Identifier: Apache-2.0
"""An engine and its scheduler as Triton's models run them: with backpressure, metrics and telemetry."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from blipstream.decoding import Engine, Request, TextDelta
from blipstream.decoding.scheduler import MAX_WAITING, Scheduler
from blipstream.serving.adapter import ModelInstance, TritonRequest
from blipstream.serving.backpressure import ROOM, Backpressure
from blipstream.serving.metrics import DecodingMetrics, TextTimer


class DecodingService:
    """What `decoder` and `caption_stream` share."""

    def __init__(self, instance: ModelInstance, engine: Engine, max_waiting: int = MAX_WAITING) -> None:
        self.engine = engine
        self._instance = instance
        self._metrics = DecodingMetrics(instance.pb_utils.MetricFamily, instance.name)
        self._backpressure = Backpressure()
        self._backpressure.add_room(ROOM[torch.device(instance.device).type])
        self._scheduler = Scheduler(engine, max_waiting, self._export, instance.telemetry.record_decoding, warm_up=True)

    def check_room(self) -> None:
        """Raise Overloaded if a request would be refused now."""
        self._scheduler.check_room()

    def wait_for_room(self) -> None:
        """Return once a request would not be refused; until then, the stages before take in less."""
        if self._scheduler.is_full:
            with self._backpressure.full():
                self._scheduler.wait_for_room()

    def count_arrived(self, images: int) -> None:
        """Count images that have come as far as the decoder, whatever becomes of them."""
        self._backpressure.take(images)

    def hand_over(self, images: int) -> None:
        """Count images that go on to another encoder."""
        self._backpressure.hand_over(0, images)

    def submit(
        self,
        request: TritonRequest,
        image: Request,
        listener: Callable[[TextDelta], None],
        *,
        streams: bool = False,
    ) -> None:
        """Submit one image of a Triton request; `listener` gets its captions. Raises Overloaded if there is no room."""
        deadline = request.deadline

        def is_over() -> bool:
            return deadline.why_over() is not None

        # a stream's client may wait longer for the rest than for the beginning
        self._scheduler.submit(image, listener, request.is_cancelled if streams else is_over, streams=streams)

    def text_timer(self) -> TextTimer:
        """A timer for the texts of a request that has arrived now."""
        return self._metrics.text_timer()

    def close(self) -> None:
        """Answer what was submitted, then end."""
        self._scheduler.close()
        self._instance.close()

    def _export(self, scheduler: Scheduler) -> None:
        self._metrics.update(scheduler)
        self._instance.export_counts()


def as_torch(tensor: Any) -> Tensor:  # noqa: ANN401
    """A Triton tensor as a torch tensor, without a copy, on the device where it lies."""
    result: Tensor = from_dlpack(tensor.to_dlpack())
    return result
