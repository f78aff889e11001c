# SPDX-License-Identifier: Apache-2.0
"""Image files that take seconds to decode, or would if the server let them. Most are small."""

import struct
import zlib
from functools import cache
from io import BytesIO
from typing import Any

from PIL import Image

PNG_HEADER_END = 33  # signature and IHDR
GIF_HEADER_END = 13 + 3 * 256  # signature, screen and palette


@cache
def slow_images() -> dict[str, bytes]:
    """The files by name. Making them takes some seconds."""
    jpeg, png, gif = (_encode(Image.new("L", (64, 64)), kind) for kind in ("JPEG", "PNG", "GIF"))
    progressive = _encode(Image.new("L", (1500, 1000)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    chunk = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    comment = b"!\xfe" + b"\1a" * 1_000_000 + b"\0"
    return {
        "slow bmp": run_length_encoded_bmp(65_535, 1_525),
        "slow webp": _encode(Image.new("RGBA", (5_000, 5_000)), "WEBP", lossless=True, quality=0, method=0),
        "slow tiff": _encode(Image.new("L", (4_000, 4_000)), "TIFF", compression="tiff_lzw"),
        "slow png": _encode(Image.new("1", (6_000, 6_000)), "PNG"),
        "slow progressive jpeg": progressive[:-2] + scan * 900 + progressive[-2:],
        "slow jpeg": jpeg[:2] + b"\xff\xfe\0\2" * 500_000 + jpeg[2:],
        "slow png chunks": png[:PNG_HEADER_END] + chunk * 200_000 + png[PNG_HEADER_END:],
        "slow gif": gif[:GIF_HEADER_END] + comment + gif[GIF_HEADER_END:],
    }


def run_length_encoded_bmp(width: int, height: int) -> bytes:
    """A BMP file with four bytes for each row: one pixel and the row's end. Pillow decodes it in Python."""
    palette = b"".join(bytes([value, 255 - value, 0, 0]) for value in range(256))
    pixels = height * b"\1\1\0\0"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<III", start + len(pixels), 0, start) + header + palette + pixels


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401
    image.save(file := BytesIO(), kind, **options)
    return file.getvalue()
