# SPDX-License-Identifier: Apache-2.0
"""No metadata is a reason to refuse a PNG file, whether it is large or damaged."""

import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from blipstream.images.pixels import load_pixels
from tests.support.image_files import encode, exif_tags, ignore_pil_warnings, png, png_chunk
from tests.support.photographs import SMALL
from tests.support.reference_pixels import SIDE, reference_pixels

pytestmark = ignore_pil_warnings


def compressed_zeros(key: bytes) -> bytes:
    return png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(bytes(16 * 2**20)))


LARGE = bytes(2 * 2**20)
METADATA = {
    "zTXt": compressed_zeros(b"Comment"),
    "zTXt with orientation": compressed_zeros(b"Raw profile type exif"),
    "iTXt": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
    "tEXt": png_chunk(b"tEXt", b"Comment\0" + LARGE),
    "iCCP": png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
    "many texts": png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(LARGE[: 2**20])) * 100,
    "unknown compression": png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\7abc") + png_chunk(b"iCCP", b"a\0\7abc"),
    "damaged": png_chunk(b"eXIf", b"MM\0*")[:-1] + b"?" + png_chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "too short": b"".join(png_chunk(name, b"\0") for name in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"acTL", b"fcTL")),
    "frames out of order": png_chunk(b"acTL", bytes([0, 0, 0, 2]) + bytes(4)) + png_chunk(b"fcTL", bytes([9] * 26)),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_is_ignored(name: str) -> None:
    """Before the pixels and after them."""
    data = encode(SMALL, "PNG")
    expected = load_pixels(data, SIDE)
    for at in (33, len(data) - 12):  # after the header; before the end
        np.testing.assert_array_equal(load_pixels(data[:at] + METADATA[name] + data[at:], SIDE), expected)


@pytest.mark.parametrize("key", [b"Comment", b"Raw profile type exif", b"XML:com.adobe.xmp"])
def test_compressed_text_takes_no_memory(key: bytes) -> None:
    chunk = png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(LARGE[: 2**20]))
    data = png(1, 1, bytes(4), before=chunk * 50)
    tracemalloc.start()
    try:
        load_pixels(data, SIDE)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["eXIf", "zTXt", "iTXt"])
def test_orientation_is_found_among_bad_metadata(kind: str) -> None:
    plain = exif_tags(6).tobytes()[6:]
    chunk = {
        "eXIf": png_chunk(b"eXIf", plain),
        "zTXt": png_chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(plain)}\n{plain.hex()}\n".encode())
        ),
        "iTXt": png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + b'<x tiff:Orientation="6"/>'),
    }[kind]
    data = encode(SMALL, "PNG")
    expected = reference_pixels(SMALL.transpose(Image.Transpose.ROTATE_270))
    for at in (33, len(data) - 12):
        mixed = data[:at] + METADATA["zTXt"] + chunk + METADATA["iCCP"] + data[at:]
        np.testing.assert_array_equal(load_pixels(mixed, SIDE), expected)
