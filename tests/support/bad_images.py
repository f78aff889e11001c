# SPDX-License-Identifier: Apache-2.0
"""Images that must be refused, each with the error message that it gets."""

import struct
from base64 import b64encode
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.support.image_files import encode, png


class BadImage(NamedTuple):
    data: bytes
    message: str  # regular expression of the whole error message


def _bad_images() -> dict[str, BadImage]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    files = {
        "JPEG": encode(noise, "JPEG"),
        "PNG": encode(noise, "PNG"),
        "WebP": encode(noise, "WEBP"),
        "BMP": encode(noise, "BMP"),
        "GIF": encode(noise, "GIF"),
        "TIFF": encode(noise, "TIFF"),
    }
    ftyp = b"\0\0\0\x1cftyp"
    mistakes = {
        "html": (b"<!DOCTYPE html><html><body>404</body></html>", "look like an HTML page"),
        "svg": (
            b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "look like an SVG drawing",
        ),
        "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "look like a PDF document"),
        "avif": (ftyp + b"avif\0\0\0\0avifmif1", "look like an AVIF image"),
        "heic": (ftyp + b"heic\0\0\0\0mif1heic", "look like a HEIC image"),
        "video": (ftyp + b"isom\0\0\2\0isomiso2", "look like a video"),
        "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "look like a JPEG 2000 image"),
        "jpeg xl": (b"\xff\x0a" + bytes(20), "look like a JPEG XL image"),
        "photoshop": (b"8BPS\0\1" + bytes(20), "look like a Photoshop document"),
        "zip": (b"PK\x03\x04" + bytes(26), "look like a compressed archive"),
        "url": (b"https://example.org/cat.jpg", "look like an address"),
        "base64 of a file that is no image": (b64encode(b"RIFF----WAVE"), "start with 52 49 46 46 2d 2d 2d 2d"),
        "ppm": (b"P6\n1 1\n255\n123", "start with 50 36 0a 31 20 31 0a 32"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "start with 25 21 50 53 2d 41 64 6f"),
        "one byte": (b"\xff", "start with ff"),
        "zeros": (bytes(100), "start with 00( 00){7}"),
    }
    damaged = {
        "zero width": ("PNG", png(0, 1, b"\0")),
        "no pixels": ("PNG", png(100, 100, b"")),
        "bad checksum": ("PNG", files["PNG"][:20] + b"\1" + files["PNG"][21:]),
        "bits that do not exist": ("PNG", png(1, 1, bytes(4), bits=3)),
        "riff without webp chunk": ("WebP", b"RIFF\x04\0\0\0WEBP"),
        "looping tiff": ("TIFF", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        "lossless jpeg": ("JPEG", files["JPEG"].replace(b"\xff\xc0", b"\xff\xc3", 1)),
        "two-layer jpeg": ("JPEG", b"\xff\xd8\xff\xc0\0\x0e\x08\0\1\0\1\2" + bytes(6) + b"\xff\xda\0\2"),
        **{f"{kind} cut in half": (kind, data[: len(data) // 2]) for kind, data in files.items()},
        **{f"{kind} header alone": (kind, data[:16]) for kind, data in files.items()},
    }
    wide_jpeg = bytearray(files["JPEG"])
    frame = wide_jpeg.index(b"\xff\xc0")
    wide_jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    bombs = {
        "png bomb": (png(50_000, 50_000, b""), "50,000 x 50,000"),
        "jpeg bomb": (bytes(wide_jpeg), "65,000 x 65,000"),
        "gif bomb": (b"GIF89a\xff\xff\xff\xff" + files["GIF"][10:], "65,535 x 65,535"),
        "tall": (png(1, 10_000_000, b""), "1 x 10,000,000"),
        "largest png": (png(2**31 - 1, 2**31 - 1, b""), "2,147,483,647 x 2,147,483,647"),
    }
    webp_bomb = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0/" + struct.pack("<I", 16_382 | 16_382 << 14) + bytes(8)
    grey = np.zeros((4, 4))

    kinds = "image must be a JPEG, PNG, WebP, BMP, GIF or TIFF file"
    limit = "image must have at most 100,000,000 pixels and 65,535 a side"
    samples = "image must have unsigned samples of at most 16 bits, but this file has"
    return {
        "empty": BadImage(b"", f"{kinds}, not empty: send the bytes of such a file"),
        "too many bytes": BadImage(
            b"BM" + bytes(32 * 2**20),
            "image must have at most 33,554,432 bytes, not 33,554,434: scale it down or compress it more",
        ),
        "base64 cut short": BadImage(
            b64encode(files["JPEG"])[:41],
            r"image that is sent as text must be complete base64, but its 41 bytes are not \(Invalid .+\): "
            "send it again in full",
        ),
        "webp bomb": BadImage(webp_bomb, r"image must have fewer pixels \(.*268402689 pixels.*\): scale it down"),
        "float samples": BadImage(
            encode(Image.fromarray(grey.astype(np.float32)), "TIFF"),
            f"{samples} floating-point ones: save it with 8 bits a sample",
        ),
        "32-bit samples": BadImage(
            encode(Image.fromarray(grey.astype(np.int32)), "TIFF"),
            f"{samples} signed or 32-bit ones: save it with 8 bits a sample",
        ),
        **{
            name: BadImage(
                data,
                f"{kinds}, but its {what}: send the bytes of such a file, in JSON as base64",
            )
            for name, (data, looks) in mistakes.items()
            for size in [12 if name.startswith("base64") else len(data)]
            for what in ["only byte is ff" if size == 1 else f"{size:,} bytes {looks}"]
        },
        **{
            name: BadImage(
                data,
                f"image must be a whole {kind} file, but its {len(data):,} bytes are cut short or damaged "
                r"\(.+\): send the file again in full, or save it again",
            )
            for name, (kind, data) in damaged.items()
        },
        **{name: BadImage(data, f"{limit}, not {size}: scale it down") for name, (data, size) in bombs.items()},
    }


BAD_IMAGES = _bad_images()
