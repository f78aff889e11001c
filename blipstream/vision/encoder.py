# SPDX-License-Identifier: Apache-2.0
"""The surface that every runtime of the vision encoder has."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from blipstream.config import CheckpointConfig
from blipstream.images.shapes import Pixels, check_pixels


class Encoder(ABC):
    """Pixels to image_embeds. Not thread-safe: one thread drives it."""

    config: CheckpointConfig
    dtype: str  # what it computes in: bf16, f16, f32 or fp8
    warm_up_batches: tuple[int, ...] = (1,)  # batch sizes that are slow the first time

    def check(self, pixels: Pixels) -> None:
        """Raises InvalidInput unless pixels [B, H, W, 3] have the checkpoint's image size."""
        check_pixels(pixels, self.config.vision.image_size)

    def warm_up(self) -> None:
        """Encode once what would make the first requests wait."""
        side = self.config.vision.image_size
        for batch in self.warm_up_batches:
            self.encode(np.zeros((batch, side, side, 3), np.uint8))

    @abstractmethod
    def encode(self, pixels: Pixels) -> Any:  # noqa: ANN401
        """uint8 pixels [B, H, W, 3] -> image_embeds [B, N, E], in numpy, or in torch on any device.

        The caller has checked the pixels, and owns the result: a later call does not change it.
        """
