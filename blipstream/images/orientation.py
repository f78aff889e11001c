# SPDX-License-Identifier: Apache-2.0
"""Turns pictures upright, as their EXIF orientation says."""

from typing import NamedTuple

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from blipstream.images.shapes import Box

UPRIGHT = 1  # in EXIF


class Turn(NamedTuple):
    """How to turn a picture upright: PIL's name for it, and the steps that it amounts to, in order."""

    method: Image.Transpose
    swaps_axes: bool
    flips_x: bool
    flips_y: bool


TURNS = {  # by EXIF orientation; any other value is upright
    2: Turn(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: Turn(Image.Transpose.ROTATE_180, False, True, True),
    4: Turn(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: Turn(Image.Transpose.TRANSPOSE, True, False, False),
    6: Turn(Image.Transpose.ROTATE_270, True, True, False),
    7: Turn(Image.Transpose.TRANSVERSE, True, True, True),
    8: Turn(Image.Transpose.ROTATE_90, True, False, True),
}


def turn_of(image: ImageFile) -> Turn | None:
    """How to turn an image upright; None if it is. An image with unreadable EXIF data is taken to be upright."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, UPRIGHT))
    except Exception:
        return None
    return TURNS.get(orientation)


def turn_upright(image: Image.Image, extent: tuple[float, float], turn: Turn | None) -> tuple[Image.Image, Box]:
    """An image turned upright, and the box of its pixels that holds the picture.

    `extent` is the picture's width and height before the turn. It is not whole if the file was decoded at a fraction
    of its size: then only a part of the last column and row belongs to the picture.
    """
    width, height = extent
    if turn is None:
        return image, (0, 0, width, height)
    image = image.transpose(turn.method)
    if turn.swaps_axes:
        width, height = height, width
    # a flip makes the last column the first one
    left = image.width - width if turn.flips_x else 0
    top = image.height - height if turn.flips_y else 0
    return image, (left, top, left + width, top + height)
