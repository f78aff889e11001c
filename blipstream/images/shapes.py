# SPDX-License-Identifier: Apache-2.0
"""Pixels, and how their sizes and boxes are written down."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from blipstream.errors import InvalidInput

Pixels: TypeAlias = npt.NDArray[np.uint8]  # [H, W, 3] for one image, [B, H, W, 3] for several; RGB
Size: TypeAlias = tuple[int, int]  # width, height
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom; pixels may be in it in part


def check_pixels(pixels: Pixels, side: int) -> None:
    """Raises InvalidInput unless the pixels have shape [B, side, side, 3]."""
    if pixels.shape[1:] != (side, side, 3):
        raise InvalidInput(f"pixels must have shape {[side, side, 3]}, not {list(pixels.shape[1:])}")
