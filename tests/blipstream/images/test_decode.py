# SPDX-License-Identifier: Apache-2.0
"""Any bytes at all give pixels or one clear InvalidImage."""

import re
import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blipstream.errors import InvalidImage
from blipstream.images.limits import ImageLimits
from blipstream.images.pixels import load_pixels
from tests.support.bad_images import BAD_IMAGES, BadImage
from tests.support.image_files import encode, ignore_pil_warnings, png, png_chunk, sixteen_bit_file, with_alpha
from tests.support.photographs import SMALL
from tests.support.reference_pixels import SIDE

pytestmark = ignore_pil_warnings


@pytest.mark.parametrize("bad", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_refused(bad: BadImage) -> None:
    with pytest.raises(InvalidImage) as caught:
        load_pixels(bad.data, SIDE)
    assert re.fullmatch(bad.message, str(caught.value))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_an_animation(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encode(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert (load_pixels(data, SIDE) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_large_metadata_of_other_formats(kind: str) -> None:
    """As large as each format has room for."""
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[270] = "description " * 2**12
    data = encode(SMALL, kind, icc_profile=bytes(2 * 2**20), exif=exif, **options)
    np.testing.assert_array_equal(load_pixels(data, SIDE), load_pixels(encode(SMALL, kind, **options), SIDE))


def test_odd_metadata_causes_no_warning() -> None:
    no_frames = png(1, 1, bytes(4), before=png_chunk(b"acTL", bytes(8)))
    bad_exif = encode(SMALL.resize((2, 2)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    code = f"""
from blipstream.images.pixels import load_pixels
for data in {[no_frames, bad_exif]}:
    load_pixels(data, 2)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


VALID = [encode(SMALL.resize((24, 16)), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")] + [
    encode(SMALL.resize((24, 16)), "JPEG", progressive=True),
    encode(SMALL.resize((24, 16)), "TIFF", compression="tiff_lzw"),
    encode(with_alpha(SMALL.resize((24, 16))), "WEBP"),
    encode(SMALL.resize((24, 16)).quantize(8), "PNG", transparency=2),
    sixteen_bit_file("tiff"),
]
FUZZ = settings(max_examples=300)


def assert_pixels_or_invalid_input(data: bytes) -> None:
    try:
        pixels = load_pixels(data, 16, limits=ImageLimits(max_pixels=1_000_000))
    except InvalidImage as exc:
        assert "\n" not in str(exc)  # noqa: PT017
    else:
        assert pixels.shape == (16, 16, 3)


@FUZZ
@given(st.sampled_from([b"", *(valid[:n] for valid in VALID for n in (8, 12, 30))]), st.binary(max_size=200))
def test_random_bytes(head: bytes, tail: bytes) -> None:
    assert_pixels_or_invalid_input(head + tail)


@FUZZ
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_mutated_files(valid: bytes, edits: list[tuple[float, int]], end: float, cut: bool) -> None:
    data = bytearray(valid)
    for place, value in edits:
        data[int(place**2 * (len(data) - 1))] = value  # more often near the header
    assert_pixels_or_invalid_input(bytes(data[: int(end * len(data))] if cut else data))
