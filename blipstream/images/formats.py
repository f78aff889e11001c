# SPDX-License-Identifier: Apache-2.0
"""Which format a file has, told by its first bytes."""

import re
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from blipstream.errors import InvalidImage


class Format(NamedTuple):
    """A format that is served."""

    signature: re.Pattern[bytes]  # how its files begin
    open: Callable[[BytesIO], ImageFile]  # reads the header with PIL


# PIL's own Image.open would try other formats as well, and check sizes against a limit of the whole process.
FORMATS = {
    "JPEG": Format(re.compile(rb"\xff\xd8\xff"), jpeg_factory),
    "PNG": Format(re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": Format(re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    "BMP": Format(re.compile(rb"BM"), BmpImageFile),
    "GIF": Format(re.compile(rb"GIF8[79]a"), GifImageFile),
    "TIFF": Format(re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
}
_EXPECTED = "image must be a JPEG, PNG, WebP, BMP, GIF or TIFF file"

# What people send by mistake: a pattern of the first bytes, and its name in the error message.
_MISTAKES = {
    rb"\s*<(!doctype html|html)": "an HTML page",
    rb"\s*(<\?xml.*)?<svg": "an SVG drawing",
    rb"%PDF": "a PDF document",
    rb"....ftyp(avi[fs])": "an AVIF image",
    rb"....ftyp(hei|hev|mif1|msf1)": "a HEIC image",
    rb"....ftyp": "a video",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "a JPEG 2000 image",
    rb"\0\0\0\x0cJXL |\xff\x0a": "a JPEG XL image",
    rb"8BPS": "a Photoshop document",
    rb"PK\x03\x04|\x1f\x8b": "a compressed archive",
    rb"https?://|file://": "an address",
}


def identify(data: bytes) -> str:
    """The name of a file's format, a key of FORMATS. Raises InvalidImage if it has none of them."""
    if not data:
        raise InvalidImage(f"{_EXPECTED}, not empty: send the bytes of such a file")
    for name, each in FORMATS.items():
        if each.signature.match(data):
            return name
    head = data[:256]
    guesses = (name for start, name in _MISTAKES.items() if re.match(start, head, re.DOTALL | re.IGNORECASE))
    guess = next(guesses, None)
    what = f"look like {guess}" if guess else f"start with {head[:8].hex(' ')}"
    size = f"{len(data):,} bytes {what}" if len(data) > 1 else f"only byte is {head.hex()}"
    raise InvalidImage(f"{_EXPECTED}, but its {size}: send the bytes of such a file, in JSON as base64")
