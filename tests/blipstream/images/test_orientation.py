# SPDX-License-Identifier: Apache-2.0
"""Pictures are turned upright as PIL itself turns them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from blipstream.images.pixels import load_pixels
from tests.support.image_files import EXIF_ORIENTATIONS, encode, exif_tags, ignore_pil_warnings
from tests.support.photographs import SMALL
from tests.support.reference_pixels import SIDE, assert_equals_reference, reference_pixels

pytestmark = ignore_pil_warnings


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", EXIF_ORIENTATIONS)
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encode(SMALL, kind, exif=exif_tags(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    np.testing.assert_array_equal(load_pixels(data, SIDE), reference_pixels(upright))


def test_orientation_six_turns_clockwise() -> None:
    red_above_blue = Image.new("RGB", (8, 8), "red")
    red_above_blue.paste("blue", (0, 4, 8, 8))
    pixels = load_pixels(encode(red_above_blue, "PNG", exif=exif_tags(6)), 8)
    assert (pixels[:, -1] == (255, 0, 0)).all()
    assert (pixels[:, 0] == (0, 0, 255)).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_unreadable_exif_is_ignored(exif: bytes) -> None:
    data = encode(SMALL, "JPEG", exif=exif)
    np.testing.assert_array_equal(load_pixels(data, SIDE), load_pixels(encode(SMALL, "JPEG"), SIDE))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_upright(orientation: int) -> None:
    assert_equals_reference(encode(SMALL, "JPEG", exif=exif_tags(orientation)))
