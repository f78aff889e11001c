# SPDX-License-Identifier: Apache-2.0
"""What every runtime of the vision encoder offers."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.config import CheckpointConfig
from blipstream.errors import InvalidInput


class Encoder(ABC):
    """Pixels to image_embeds. Not thread-safe: one thread drives it."""

    config: CheckpointConfig
    warm_up_batches: tuple[int, ...] = (1,)
    dtype: str  # what it computes in: bf16, f16 or f32

    def check(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Raises InvalidInput where pixels [B, H, W, 3] have another size than the checkpoint's."""
        check_pixels(pixels, self.config.vision.image_size)

    def warm_up(self) -> None:
        """Do what would make the first requests wait."""
        side = self.config.vision.image_size
        for batch in self.warm_up_batches:
            self.encode(np.zeros((batch, side, side, 3), np.uint8))

    @abstractmethod
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Any:  # noqa: ANN401
        """UINT8 pixels [B, H, W, 3] -> image_embeds [B, N, E], numpy, or a torch tensor on any device."""


def check_pixels(pixels: npt.NDArray[np.uint8], side: int) -> None:
    """Raises InvalidInput unless they have shape [B, side, side, 3]."""
    if pixels.shape[1:] != (side, side, 3):
        raise InvalidInput(f"pixels must have shape {[side, side, 3]}, not {list(pixels.shape[1:])}")
