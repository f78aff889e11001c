# SPDX-License-Identifier: Apache-2.0
"""Transparent, deep and unusual colors become the RGB that viewers show."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blipstream.images.pixels import load_pixels
from tests.support.image_files import GREY, encode, ignore_pil_warnings, sixteen_bit_file
from tests.support.photographs import CHINA, SMALL
from tests.support.reference_pixels import SIDE, assert_equals_reference, reference_pixels

pytestmark = ignore_pil_warnings


@pytest.mark.parametrize("adobe_transform", [0, 2])
def test_cmyk_jpeg_looks_like_its_source(adobe_transform: int) -> None:
    data = encode(CHINA.convert("CMYK"), "JPEG", quality=95)
    marker = data.index(b"Adobe")
    if adobe_transform == 2:  # call the same four channels YCCK: other colors, the same path
        data = data[: marker + 11] + b"\2" + data[marker + 12 :]
        assert_equals_reference(data)
    else:
        difference = load_pixels(data, SIDE).astype(int) - reference_pixels(CHINA)
        assert np.abs(difference).mean() < 3


def test_transparent_is_white() -> None:
    assert (load_pixels(encode(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG"), SIDE) == 255).all()
    half = load_pixels(encode(Image.new("LA", (9, 9), (0, 128)), "PNG"), SIDE)
    assert (half == 127).all()


@pytest.mark.parametrize(
    "kind",
    ["png grey", "png grey alpha", "png rgb", "png rgba", "tiff", "tiff big-endian", "tiff white is zero"],
)
def test_16_bits_are_scaled(kind: str) -> None:
    expected = np.repeat(GREY[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load_pixels(sixteen_bit_file(kind), 16), expected)


def tiff(bits: int, samples: bytes, *extra: tuple[int, int, int, int]) -> bytes:
    """A little-endian grey TIFF file of 2 x 1 pixels. `extra` are entries (tag, type, count, value)."""
    fixed = [(256, 3, 1, 2), (257, 3, 1, 1), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (278, 3, 1, 1)]
    entries = sorted([*fixed, (279, 4, 1, len(samples)), *(extra or [(258, 3, 1, bits)])])
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + len(samples)
    return b"II*\0" + struct.pack("<I", start) + samples + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_12_bits_are_scaled() -> None:
    samples = bytes([0x12, 0x3F, 0xFF])  # 0x123, 0xFFF
    assert load_pixels(tiff(12, samples), 2)[0, :, 0].tolist() == [0x12, 0xFF]


def test_premultiplied_grey_is_laid_on_white() -> None:
    samples = bytes([100, 200, 0, 0])  # grey 100/200 at alpha 200; transparent
    data = tiff(8, samples, (258, 3, 2, 8 | 8 << 16), (277, 3, 1, 2), (338, 3, 1, 1))
    assert load_pixels(data, 2)[0, :, 0].tolist() == pytest.approx([155, 255], abs=1)


def bmp_with_alpha(pixels: Any) -> bytes:
    """From RGBA pixels [H, W, 4]: 32 bits a pixel, with a mask that says that eight of them are alpha."""
    body = np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
    height, width, _ = pixels.shape
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(body), 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    return b"BM" + struct.pack("<III", 14 + len(header) + len(body), 0, 14 + len(header)) + header + body


def test_bmp_with_an_alpha_channel_of_zeros_is_opaque() -> None:
    """Viewers show it so; the reference makes it white. If some alpha is not zero, both agree."""
    pixels = np.dstack([np.asarray(SMALL), np.zeros((60, 100), np.uint8)])
    clear = bmp_with_alpha(pixels)
    assert (reference_pixels(Image.open(BytesIO(clear))) == 255).all()
    np.testing.assert_array_equal(load_pixels(clear, SIDE), load_pixels(encode(SMALL, "BMP"), SIDE))
    pixels[30:, 50:, 3] = 200
    assert_equals_reference(bmp_with_alpha(pixels))
