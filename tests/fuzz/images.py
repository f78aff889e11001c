# SPDX-License-Identifier: Apache-2.0
"""Broken image files: good files of every accepted format, damaged in ways that keep most of their structure."""

import struct
import zlib
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable, Iterator
from io import BytesIO
from random import Random
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from slow_images import run_length_encoded_bmp, slow_images

EDGES = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _corpus() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 4), np.uint8)
    noise[:, :24] = noise[:1, :1]  # one half is flat, so that encoders write runs and back references
    rgba = Image.fromarray(noise)
    rgb, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("P")
    deep = Image.fromarray((noise[..., 0].astype(np.uint16) << 8) + noise[..., 1])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)], "duration": 40}
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg grey": (grey, "JPEG", {"restart_marker_blocks": 2, "comment": b"comment"}),
        "png": (rgb, "PNG", {"exif": exif}),
        "png alpha": (rgba, "PNG", {}),
        "png palette": (palette, "PNG", {"transparency": 3}),
        "png 16 bits": (deep, "PNG", {}),
        "png 1 bit": (rgba.convert("1"), "PNG", {}),
        "png animated": (rgb, "PNG", frames),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "webp lossless": (rgba, "WEBP", {"lossless": True}),
        "webp alpha": (rgba, "WEBP", {}),
        "webp animated": (rgb, "WEBP", frames),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (palette, "BMP", {}),
        "bmp alpha": (rgba, "BMP", {}),
        "gif": (palette, "GIF", {"transparency": 3}),
        "gif animated": (rgb, "GIF", frames),
        "tiff": (rgb, "TIFF", {}),
        "tiff cmyk": (rgb.convert("CMYK"), "TIFF", {}),
        "tiff 16 bits": (deep, "TIFF", {}),
        **{
            f"tiff {name}": (image, "TIFF", {"compression": name})
            for name, image in [
                ("tiff_lzw", rgba),
                ("tiff_deflate", rgb),
                ("packbits", palette),
                ("jpeg", rgb),
                ("group4", rgba.convert("1")),
            ]
        },
    }
    corpus = {name: _encode(*arguments) for name, arguments in files.items()}
    corpus |= {
        "png interlaced": _interlaced_png(noise[..., :3]),
        "bmp run-length encoded": run_length_encoded_bmp(200, 100),
        "bmp clear": _encode(Image.merge("RGBA", [*rgb.split(), Image.new("L", rgb.size)]), "BMP", {}),
    }
    text, exif_text = zlib.compress(bytes(2**21)), b"Raw profile type exif\0\0" + zlib.compress(b"\n" * 2**20)
    metadata = [b"zTXtComment\0\0" + text, b"iCCPprofile\0\0" + text, b"iTXtXML:com.adobe.xmp\0\1\0\0\0" + text]
    signature, header, *rest = split_png(corpus["png"])
    return corpus | {
        "png metadata": join_png([signature, header, *metadata, b"zTXt" + exif_text, *rest[:-1], *metadata, rest[-1]])
    }


def _encode(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    image.save(file := BytesIO(), kind, **options)
    return file.getvalue()


def _interlaced_png(pixels: Any) -> bytes:
    """Adam7, which PIL reads and does not write."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    parts = (pixels[top::down, left::across] for top, down, left, across in passes)
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return join_png([b"\x89PNG\r\n\x1a\n", *(name + body for name, body in chunks)])


def split_png(data: bytes) -> list[bytes]:
    """Split a PNG file into its signature and the name and body of each chunk."""
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    return parts


def join_png(parts: list[bytes]) -> bytes:
    """Join the parts of split_png, with right lengths and checksums."""
    signature, *chunks = parts
    return signature + b"".join(
        struct.pack(">I", max(len(chunk) - 4, 0)) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def split_riff(data: bytes) -> list[bytes]:
    parts, at = [data[:12]], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        parts.append(data[at : at + 4] + data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return parts


def join_riff(parts: list[bytes]) -> bytes:
    body = b"".join(
        part[:4] + struct.pack("<I", max(len(part) - 4, 0)) + part[4:] + bytes(len(part) % 2) for part in parts[1:]
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def split_jpeg(data: bytes) -> list[bytes]:
    """Split a JPEG file into its first marker, the marker and body of each segment, and the rest from the scans on."""
    parts, at = [data[:2]], 2
    while data[at : at + 2] not in (b"\xff\xda", b"") and at + 4 <= len(data):
        (length,) = struct.unpack_from(">H", data, at + 2)
        parts.append(data[at : at + 2] + data[at + 4 : at + 2 + length])
        at += 2 + length
    return [*parts, data[at:]]


def join_jpeg(parts: list[bytes]) -> bytes:
    start, *segments, scans = parts
    return start + b"".join(each[:2] + struct.pack(">H", len(each) % 65_534) + each[2:] for each in segments) + scans


Split = tuple[Callable[[bytes], list[bytes]], Callable[[list[bytes]], bytes]]
STRUCTURES: dict[bytes, Split] = {
    b"\x89PNG": (split_png, join_png),
    b"RIFF": (split_riff, join_riff),
    b"\xff\xd8": (split_jpeg, join_jpeg),
}

CORPUS = _corpus()
NAMES = sorted(CORPUS)
SLOW = slow_images()  # damaged like the others, but few are sent
SLOW_SHARE = 1 / 500  # of the images that are sent


def flip_bits(data: bytes, random: Random) -> bytes:
    broken = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        broken[random.randrange(len(broken))] ^= 1 << random.randrange(8)
    return bytes(broken)


def set_bytes(data: bytes, random: Random) -> bytes:
    broken = bytearray(data)
    at = random.randrange(len(broken))
    length = random.choice((1, 1, 2, 4, 32))
    broken[at : at + length] = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
    return bytes(broken)


def cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def leave_out(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + data[at + random.randint(1, 64) :]


def repeat(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + data[at : at + random.randint(1, 64)] * random.choice((2, 2, 3, 100)) + data[at:]


def edit_number(data: bytes, random: Random) -> bytes:
    """Write a number at the edge of a type's range, mostly in the header, which has sizes and counts."""
    form = random.choice(("<H", ">H", "<I", ">I"))
    at = random.randrange(min(len(data), 64 if random.random() < 0.7 else len(data)))
    value = random.choice(EDGES) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def splice(data: bytes, random: Random) -> bytes:
    """Join the beginning of one file and the end of another."""
    other = CORPUS[random.choice(NAMES)]
    return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]


def rearrange(data: bytes, random: Random) -> bytes:
    """Repeat, leave out, swap, damage or insert chunks or segments. Lengths and checksums stay right."""
    found = next((way for start, way in STRUCTURES.items() if data.startswith(start)), None)
    if found is None:
        return edit_number(data, random)
    split, join = found
    parts = split(data)
    if len(parts) < 3:
        return flip_bits(data, random)
    at = random.randrange(1, len(parts))
    match random.choice(("repeat", "leave out", "swap", "damage", "damage", "put in")):
        case "repeat":
            parts[at:at] = [parts[at]] * random.choice((1, 1, 50))
        case "leave out":
            del parts[at]
        case "swap":
            other = random.randrange(1, len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        case "damage" if len(parts[at]) > 4:
            parts[at] = parts[at][:4] + mutate(parts[at][4:], random, 1)
        case _:
            relatives = [CORPUS[name] for name in NAMES if CORPUS[name][:2] == data[:2]]
            parts.insert(at, random.choice(split(random.choice(relatives))[1:]))
    return join(parts)


def as_text(data: bytes, random: Random) -> bytes:
    """Encode as base64, in one of the forms that tools write. Half of the texts are damaged."""
    text = random.choice((b64encode, encodebytes, urlsafe_b64encode))(data)
    if random.random() < 0.3:
        text = text.rstrip(b"=\n")
    if random.random() < 0.2:
        text = quote(text).encode()
    if text and random.random() < 0.5:
        text = mutate(text, random, 1)
    return (
        random.choice((b"", b"data:image/png;base64,", b"data:;BASE64,", b"data:,", b"data:" + b"x" * 5000 + b","))
        + text
    )


MUTATIONS = (flip_bits, set_bytes, cut, leave_out, repeat, edit_number, edit_number, splice, rearrange, rearrange)


def mutate(data: bytes, random: Random, times: int) -> bytes:
    for _ in range(times):
        if data:
            data = random.choice(MUTATIONS)(data, random)
    return data


def broken_image(seed: int, number: int) -> tuple[str, bytes]:
    """The name of an image and the image with its damage, the same each time."""
    random = Random(f"image {seed} {number}")
    if random.random() < SLOW_SHARE:
        name = random.choice(sorted(SLOW))
        return name, mutate(SLOW[name], random, random.choice((0, 1)))
    name = random.choice(NAMES)
    data = mutate(CORPUS[name], random, random.choice((1, 1, 1, 2, 3)))
    return name, as_text(data, random) if random.random() < 0.04 else data


def broken_images(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    return (broken_image(seed, number) for number in range(count))
