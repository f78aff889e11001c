# SPDX-License-Identifier: Apache-2.0
"""Image files made in code, and the images to make them of."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

EXIF_ORIENTATIONS = range(1, 9)

# The marks of a module. pytest's own filter "error" comes after the one that blipstream.images sets for PIL, so that
# it wins; this one comes after both.
ignore_pil_warnings = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Many samples are at either end of the range, so that bicubic sums leave it."""
    samples = np.random.default_rng(seed).integers(-60, 316, (height, width, 3)).clip(0, 255)
    return Image.fromarray(samples.astype(np.uint8))


def with_alpha(image: Image.Image) -> Image.Image:
    """Opaque on the left, transparent on the right."""
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").rotate(90).resize(image.size))
    return image


def exif_tags(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def stack_pixels(images: Sequence[Image.Image], side: int) -> npt.NDArray[np.uint8]:
    """The images as an encoder takes them: [B, side, side, 3]."""
    return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images])


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, rows: bytes, *, bits: int = 8, color_type: int = 2, before: bytes = b"") -> bytes:
    """A PNG file with this header, true or not: `rows` are taken as they are, filter bytes included."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def sixteen_bit_file(kind: str) -> bytes:
    """GREY with 16 bits a sample: each value v is 257 v."""
    samples = GREY.astype(np.uint16) * 257
    big = samples.astype(">u2")
    colors = np.repeat(big[..., None], 4, axis=-1)
    colors[..., 3] = 65535
    rows = {
        "png grey": (0, big),
        "png grey alpha": (4, colors[..., [0, 3]]),
        "png rgb": (2, colors[..., :3]),
        "png rgba": (6, colors),
    }
    if kind in rows:
        color_type, values = rows[kind]
        lines = b"".join(b"\0" + line.tobytes() for line in values)
        return png(16, 16, lines, bits=16, color_type=color_type)
    if kind == "tiff white is zero":
        return encode(Image.fromarray(~samples), "TIFF", tiffinfo={262: 0})
    if kind == "tiff big-endian":
        return encode(Image.frombytes("I;16B", (16, 16), big.tobytes()), "TIFF")
    return encode(Image.fromarray(samples), "TIFF")


def tiff_of_one_strip(rows: int) -> bytes:
    """A TIFF file of 8 pixels a row, in which all rows share one strip of bytes."""
    tags = {256: 8, 257: rows, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: 1, 279: 0}
    lists = {273: [tags[273]] * rows, 279: [8 + 100] * rows}
    start = tags[273] + 8 + 100
    body = bytes(8 + 100) + b"".join(struct.pack(f"<{rows}I", *values) for values in lists.values())
    tags |= {273: start, 279: start + 4 * rows}
    entries = (struct.pack("<HHII", tag, 4, rows if tag in lists else 1, value) for tag, value in tags.items())
    return struct.pack("<4sIH", b"II*", 8, len(tags)) + b"".join(entries) + bytes(4) + body
