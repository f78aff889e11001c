# SPDX-License-Identifier: Apache-2.0
"""A vision encoder as Triton's models run it: with backpressure and telemetry."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.config import ENCODERS, of_one_checkpoint
from blipstream.images.shapes import Pixels
from blipstream.serving.adapter import ModelInstance, Outputs, TritonRequest, attempt, attempt_together
from blipstream.serving.backpressure import Backpressure
from blipstream.vision import load_encoder


class EncodingService:
    """What `encoder` and `match_encoder` share."""

    def __init__(self, instance: ModelInstance) -> None:
        """Raises ArtifactError if there is no such encoder, or it is of another checkpoint than what is around it."""
        self._instance = instance
        runtime = instance.parameters["runtime"]
        self.encoder = load_encoder(runtime, of_one_checkpoint(instance.folder / runtime), instance.device)
        self.encoder.warm_up()
        others = [instance.folder_of(name) for name in ENCODERS if name != instance.name]
        self._is_alone = not any(other.is_dir() for other in others)  # those that are not served are not there
        self._backpressure = Backpressure()
        self._backpressure.add_encoder()

    def execute(self, triton_requests: Sequence[Any]) -> list[Any]:
        """A response for each request. A request that is refused, or at which the encoder fails, spoils no other."""
        began = time.monotonic()
        requests = [self._instance.request(each) for each in triton_requests]
        results = attempt_together(self._encode, [attempt(self._read, request) for request in requests])
        seconds = time.monotonic() - began
        responses = [request.response(each, seconds) for request, each in zip(requests, results, strict=True)]
        self._instance.export_counts()
        return responses

    def close(self) -> None:
        """Send the last spans."""
        self._instance.close()

    def _read(self, request: TritonRequest) -> Pixels:
        """A request's pixels, uint8 [B, H, W, 3]."""
        request.refuse_parameters(("pixels",))
        pixels: Pixels = request.arrays("pixels")["pixels"]
        self.encoder.check(pixels)
        return pixels

    def _encode(self, batch: Sequence[Pixels]) -> list[Outputs]:
        """The outputs of each request, from one call of the encoder."""
        pixels = np.concatenate(batch)
        leaves = len(pixels) >= self._instance.max_batch
        with self._backpressure.encoding(len(pixels), leaves=leaves, is_alone=self._is_alone):
            image_embeds = _half(self.encoder.encode(pixels))
        ends = np.cumsum([len(each) for each in batch])
        return [{"image_embeds": image_embeds[end - len(each) : end]} for each, end in zip(batch, ends, strict=True)]


def _half(image_embeds: Any) -> npt.NDArray[np.float16] | Any:  # noqa: ANN401
    """The same in f16, on the device where it lies."""
    return image_embeds.astype(np.float16) if isinstance(image_embeds, np.ndarray) else image_embeds.half()
