# SPDX-License-Identifier: Apache-2.0
"""Pixels equal the reference's, bit for bit; those of scaled JPEG files are close."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blipstream.errors import InvalidInput
from blipstream.images.pixels import load_pixels
from blipstream.images.resize import RESIZE_MODES
from tests.support.bad_images import BAD_IMAGES
from tests.support.image_files import EXIF_ORIENTATIONS, encode, exif_tags, ignore_pil_warnings
from tests.support.photographs import ASTRONAUT, CHINA, ENCODINGS, FLOWER, SMALL, photograph
from tests.support.reference_pixels import SIDE, assert_equals_reference

pytestmark = ignore_pil_warnings


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_equals_the_reference(name: str) -> None:
    image, kind, options = ENCODINGS[name]
    assert_equals_reference(encode(image, kind, **options))


@pytest.mark.parametrize("image", [CHINA, FLOWER, ASTRONAUT, SMALL, SMALL.resize((7, 300)), SMALL.resize((1, 1))])
@pytest.mark.parametrize("side", [1, 64, 224, 384, 512])
def test_sizes_equal_the_reference(image: Image.Image, side: int) -> None:
    assert_equals_reference(encode(image, "PNG"), side)


@pytest.mark.parametrize("name", ["coffee", "chelsea", "camera", "rocket"])
def test_photographs_equal_the_reference(name: str) -> None:
    assert_equals_reference(encode(photograph(name), "JPEG", quality=90), 384)


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.integers(0, 2**32))
def test_any_size_equals_the_reference(width: int, height: int, side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert_equals_reference(encode(Image.fromarray(pixels), "BMP"), side)


def test_pixels_are_writable() -> None:
    assert load_pixels(encode(SMALL, "PNG"), SIDE).flags.writeable  # torch.from_numpy warns of others


def psnr(ours: Any, theirs: Any) -> float:
    error = float(np.square(ours.astype(float) - theirs).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("orientation", EXIF_ORIENTATIONS)
@pytest.mark.parametrize("size", [(640, 480), (397, 803), (801, 1601)])
def test_fast_jpeg_scaling_is_close(size: tuple[int, int], orientation: int, mode: str) -> None:
    """A shift by a fraction of a pixel, which partial last rows could cause, would cost 10 dB or more."""
    data = encode(FLOWER.resize(size), "JPEG", quality=90, exif=exif_tags(orientation))
    exact, fast = (load_pixels(data, SIDE, mode, jpeg_scaling=how) for how in ("exact", "fast"))
    assert not np.array_equal(exact, fast)
    assert psnr(exact, fast) > 46


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_fast_jpeg_scaling_changes_only_jpeg(kind: str) -> None:
    data = encode(CHINA, kind)
    np.testing.assert_array_equal(load_pixels(data, SIDE), load_pixels(data, SIDE, jpeg_scaling="fast"))


def test_fast_jpeg_scaling_keeps_twice_the_pixels() -> None:
    side = 427 // 4  # of CHINA's height
    data = encode(CHINA, "JPEG")
    for image_size, scaled in [(side, True), (side + 1, False)]:
        exact, fast = (load_pixels(data, image_size, jpeg_scaling=how) for how in ("exact", "fast"))
        assert np.array_equal(exact, fast) is not scaled


def test_fast_jpeg_scaling_refuses_alike() -> None:
    for bad in BAD_IMAGES.values():
        with pytest.raises(InvalidInput) as caught:
            load_pixels(bad.data, SIDE, jpeg_scaling="fast")
        assert re.fullmatch(bad.message, str(caught.value))
