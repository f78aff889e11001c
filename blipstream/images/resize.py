# SPDX-License-Identifier: Apache-2.0
"""Which part of a picture the model sees, and how it fills the model's square."""

from collections.abc import Callable

import numpy as np

from blipstream import options
from blipstream.images.shapes import Box, Pixels, Size

DEFAULT_RESIZE_MODE = options.RESIZE_MODES[0]  # as the reference
LETTERBOX_COLOR = (123, 117, 104)  # CLIP's image mean in 8 bits: close to zero once normalized


def _stretch(picture: Box, side: int) -> tuple[Box, Size]:
    return picture, (side, side)


def _center_crop(picture: Box, side: int) -> tuple[Box, Size]:
    left, top, right, bottom = picture
    edge = min(right - left, bottom - top)
    left, top = left + (right - left - edge) / 2, top + (bottom - top - edge) / 2
    return (left, top, left + edge, top + edge), (side, side)


def _letterbox(picture: Box, side: int) -> tuple[Box, Size]:
    left, top, right, bottom = picture
    scale = side / max(right - left, bottom - top)
    width, height = (max(1, round(length * scale)) for length in (right - left, bottom - top))
    return picture, (width, height)


# From the box of an upright picture and the side of the model's square: the box to resize, and the size to give it.
RESIZE_MODES: dict[str, Callable[[Box, int], tuple[Box, Size]]] = dict(
    zip(options.RESIZE_MODES, (_stretch, _center_crop, _letterbox), strict=True)
)


def pad_to_square(pixels: Pixels, side: int) -> Pixels:
    """Pixels [H, W, 3] in the middle of [side, side, 3], with LETTERBOX_COLOR around; unchanged if they fill it."""
    height, width, _ = pixels.shape
    if height == width == side:
        return pixels
    square = np.full((side, side, 3), LETTERBOX_COLOR, np.uint8)
    left, top = (side - width) // 2, (side - height) // 2
    square[top : top + height, left : left + width] = pixels
    return square
