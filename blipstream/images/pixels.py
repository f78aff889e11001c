# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels, exactly as transformers' PIL processor for BLIP resizes them.

Three things differ from it on purpose: EXIF orientation is applied; 16-bit grey is scaled to 8 bits where the
reference clips it; and a BMP file of which every pixel is said to be clear is opaque, as viewers show it. Transparency
is laid on white, as there; of animations, the first frame counts. What is no pixel is no reason to refuse a file.
"""

import ctypes
import os
import re
import struct
import time
import warnings
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from string import whitespace
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory
from PIL.PngImagePlugin import PngImageFile, PngStream
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    STRIPBYTECOUNTS,
    TILEBYTECOUNTS,
    TiffImageFile,
)
from PIL.WebPImagePlugin import WebPImageFile

from blipstream.errors import InvalidInput

Pixels: TypeAlias = npt.NDArray[np.uint8]  # [height, width, 3], RGB
Size: TypeAlias = tuple[float, float]  # width, height; not whole where a file was decoded at a fraction of its size
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

# Odd metadata makes PIL warn, and a bad request is no line in the server's log. One filter for the process,
# since warnings.catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
# libtiff writes a line for each fault that it finds, in some files one for each row of pixels.
with suppress(AttributeError):  # where Pillow has it built in, or not at all
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost. Pixels and sides are read from its header, before it is decoded."""

    max_bytes: int = 32 * 2**20  # encoded
    max_pixels: int = 100_000_000  # decoding takes 4 bytes a pixel, transparency 16
    max_side: int = 65_535  # pixels, as in JPEG
    max_scans: int = 16  # of a progressive JPEG of max_pixels; of a smaller one, more. Each passes over all pixels
    # Of a processor's time, about twice what the slowest honest files take:
    seconds: float = 1.0  # for any file,
    seconds_for_pixels: float = 9.0  # more for one of max_pixels,
    seconds_for_bytes: float = 3.0  # and for one of max_bytes

    def budget(self, num_bytes: int, pixels: float = 0) -> float:
        """Seconds of a processor's time that a file may take."""
        for_pixels = self.seconds_for_pixels * pixels / self.max_pixels
        return self.seconds + for_pixels + self.seconds_for_bytes * num_bytes / self.max_bytes


DEFAULT_LIMITS = ImageLimits()
TOO_SLOW = "image must decode in the time that its size is worth, but takes longer: save it anew as JPEG or PNG"
# the scans of a JPEG within a TIFF file, which only libtiff can count
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(DEFAULT_LIMITS.max_scans))
START_OF_SCAN = b"\xff\xda"
MAX_SCANS = 1_000  # of a JPEG file, however small: thumbnails in its metadata count, too

# Formats are opened through their own classes: Image.open would look at other formats too, and checks
# the size against a limit that is global to the process.
_FORMATS: dict[str, tuple[re.Pattern[bytes], Callable[[BytesIO], ImageFile]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), jpeg_factory),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
}
_EXPECTED = "image must be a JPEG, PNG, WebP, BMP, GIF or TIFF file"

# An image is quick if it surely decodes within about QUICK_SECONDS of a processor's time. Decoders are stopped where
# they read on; what one does in between is bounded by pixels.
QUICK_SECONDS = 0.1
_QUICK_BYTES = 2 * 2**20
_QUICK_PIXELS = 2_000_000
_QUICK_JPEG_PIXELS = 4_000_000  # of those in one pass
_QUICK_PYTHON_PIXELS = 40_000  # of those that PIL does not decode in C

# The chunks of a PNG file that say how it looks. Beside eXIf, texts with these keys may have its orientation.
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PNG_KEYS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_MAX_PNG_TEXTS = 16  # of at most 1 MB each, as PIL reads them

# How a file of one of these formats begins in base64, as which JSON carries it. No such file itself begins so.
_BASE64 = re.compile(rb"[/_]9j[/_]|iVBORw0KGgo|UklGR|Qk[0-3]|R0lGODdh|R0lGODlh|SUk[qr]|TU0AK")
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b""}  # of what may be in base64, in URLs

# What people send by mistake: pattern of the first bytes, what to call it.
_STRANGERS = {
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


class Slow(Exception):
    """An image may take long, while somebody waits for others."""


class Turn(NamedTuple):
    """How to set a picture upright: PIL's name for it, and the two steps that it amounts to."""

    method: Image.Transpose
    swaps_axes: bool  # first
    mirrors_columns: bool
    mirrors_rows: bool


TURNS = {  # by EXIF orientation; any other is upright
    2: Turn(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: Turn(Image.Transpose.ROTATE_180, False, True, True),
    4: Turn(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: Turn(Image.Transpose.TRANSPOSE, True, False, False),
    6: Turn(Image.Transpose.ROTATE_270, True, True, False),
    7: Turn(Image.Transpose.TRANSVERSE, True, True, True),
    8: Turn(Image.Transpose.ROTATE_90, True, False, True),
}

DEFAULT_RESIZE_MODE = "stretch"  # as the reference
LETTERBOX_COLOR = (123, 117, 104)  # CLIP's image mean in 8 bits: next to zero once normalised

# How JPEG files are decoded: "fast" lets the decoder shrink large ones by 2, 4 or 8 as long as they keep so many
# times the pixels a side that the model sees.
JPEG_SCALING = {"exact": None, "fast": 2}

# PIL gives large images' memory back to the system, to get it anew page by page, unless it may keep some 16 MB blocks.
Image.core.set_blocks_max(4)  # type: ignore[attr-defined]


def load_pixels(
    data: bytes,
    image_size: int,
    resize_mode: str = DEFAULT_RESIZE_MODE,
    limits: ImageLimits = DEFAULT_LIMITS,
    jpeg_scaling: str = "exact",
    *,
    quick: bool = False,
    alarm: Callable[[float], object] | None = None,
) -> Pixels:
    """Decode and resize one image to uint8 [image_size, image_size, 3], RGB.

    `resize_mode` is one of RESIZE_MODES: "stretch" ignores the aspect ratio as the reference does,
    "center_crop" fits the shorter side and cuts the rest away evenly, "letterbox" fits the longer side and
    pads evenly with LETTERBOX_COLOR. Raises InvalidInput, and nothing else, for whatever `data` holds; if it is to be
    `quick`, also Slow for what may take longer than QUICK_SECONDS. `alarm` is told, and told again once the size is
    known, how many seconds of a processor's time are left: decoders cannot be stopped wherever they are.
    """
    if resize_mode not in RESIZE_MODES:
        raise InvalidInput(f"resize_mode must be one of {', '.join(RESIZE_MODES)}, not {_excerpt(resize_mode)}")
    with opened(data, limits, quick=quick, alarm=alarm) as image:
        if quick:
            _check_quick(image, limits)
        oversize = JPEG_SCALING[jpeg_scaling]
        extent = _shrink(image, oversize * image_size) if oversize else None
        image.load()
        turn = TURNS.get(orientation(image))
        rgb, picture = _upright(_to_rgb(image), extent or image.size, turn)
    box, size = RESIZE_MODES[resize_mode](picture, image_size)
    return in_square(np.array(rgb.resize(size, Image.Resampling.BICUBIC, box)), image_size)


@contextmanager
def opened(
    data: bytes, limits: ImageLimits, *, quick: bool = False, alarm: Callable[[float], object] | None = None
) -> Iterator[ImageFile]:
    """An image of which the header is read and in order. Whatever fails within, fails with InvalidInput, or Slow."""
    data = _from_text(data, limits)
    _check_bytes(len(data), limits)
    kind = _sniff(data)
    watch = _Watch(QUICK_SECONDS if quick else limits.budget(len(data)), quick, alarm)
    with _translated_errors(kind, data):
        if kind == "PNG":
            data = _without_metadata(data, watch)
        image = _FORMATS[kind][1](_Timed(data, watch))
        _check_size(image, limits)
        if kind == "JPEG":
            _check_scans(image, data, limits)
        if not quick:
            worth = 0.25 if _is_in_python(image) else 1  # it is fast, too, where a file has bytes for its pixels
            watch.allow(limits.budget(len(data), image.width * image.height * worth))
        yield image


class _Watch:
    """The processor's time that a thread may spend on an image."""

    def __init__(self, seconds: float, quick: bool, alarm: Callable[[float], object] | None) -> None:
        self._began = time.thread_time()
        self._quick, self._alarm = quick, alarm
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Allow so many, from the beginning on."""
        self._end = self._began + seconds
        if self._alarm:
            self._alarm(seconds)

    def check(self) -> None:
        """Raises InvalidInput, or Slow where somebody waits, once the time is over."""
        if time.thread_time() >= self._end:
            raise Slow if self._quick else InvalidInput(TOO_SLOW)


class _Timed(BytesIO):
    """A file that refuses to be read on once the time is over."""

    def __init__(self, data: bytes, watch: _Watch) -> None:
        super().__init__(data)
        self._watch = watch

    def read(self, size: int | None = -1) -> bytes:
        """Raises InvalidInput, or Slow."""
        self._watch.check()
        return super().read(size)


def _from_text(data: bytes, limits: ImageLimits) -> bytes:
    """What base64 text holds, as it is or in a data URL (RFC 2397): JSON has no other way to carry a file."""
    payload = data
    if data[:5].lower() == b"data:":
        header, comma, payload = data.partition(b",")
        if not comma or not re.search(rb";\s*base64\s*$", header, re.IGNORECASE):
            raise InvalidInput(f"a data URL must begin as data:image/jpeg;base64, and not with {_excerpt(data)}")
        for escape, character in _ESCAPES.items() if b"%" in payload else ():
            payload = payload.replace(escape, character).replace(escape.lower(), character)
    elif not _BASE64.match(data):
        return data
    text = payload.translate(_URLSAFE, whitespace.encode()).rstrip(b"=")
    _check_bytes(len(text) * 3 // 4, limits)
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError as exc:
        raise InvalidInput(
            f"image must be whole base64 text where it is text, but {len(data):,} bytes are not ({_one_line(exc)}): "
            "send it again in full"
        ) from exc


def _check_bytes(count: int, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        raise InvalidInput(
            f"image must have at most {limits.max_bytes:,} bytes, not {count:,}: scale it down or compress it more"
        )


def _excerpt(sent: bytes | str) -> str:
    """What came, as far as a message shows it."""
    return repr(sent[:40])[:60]


def _without_metadata(data: bytes, watch: _Watch) -> bytes:
    """A PNG file's chunks that say how it looks: PIL refuses a whole file for what it dislikes in any other."""
    view = memoryview(data)
    kept, texts, at = [view[:8]], 0, 8
    while at + 8 <= len(data):
        watch.check()
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = view[at : at + length + 12]
        is_text = name in _PNG_TEXTS and chunk[8:40].tobytes().startswith(_PNG_KEYS) and texts < _MAX_PNG_TEXTS
        if name in _PNG_PIXELS or ((is_text or name == b"eXIf") and _is_readable(name, chunk)):
            kept.append(chunk)
            texts += is_text
        at = len(data) if name == b"IEND" else at + len(chunk)
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


def _is_readable(name: bytes, chunk: memoryview) -> bool:
    """Whether PIL reads a chunk: not if it is damaged, or if there is more than a megabyte of text in it."""
    stream = PngStream(BytesIO(chunk[8:]))
    try:
        stream.crc(name, stream.call(name, 0, len(chunk) - 12))
    except Exception:
        return False
    return True


def _sniff(data: bytes) -> str:
    """The format that the first bytes tell, a key of _FORMATS. Raises InvalidInput for any other."""
    if not data:
        raise InvalidInput(f"{_EXPECTED}, not empty: send the bytes of such a file")
    for kind, (signature, _) in _FORMATS.items():
        if signature.match(data):
            return kind
    head = data[:256]
    looks = (name for start, name in _STRANGERS.items() if re.match(start, head, re.DOTALL | re.IGNORECASE))
    guess = next(looks, None)
    what = f"look like {guess}" if guess else f"start with {head[:8].hex(' ')}"
    raise InvalidInput(
        f"{_EXPECTED}, but its {len(data):,} bytes {what}: send the bytes of such a file, in JSON as base64"
    )


@contextmanager
def _translated_errors(kind: str, data: bytes) -> Iterator[None]:
    """Make whatever a decoder raises one InvalidInput: on bad data PIL raises nearly every built-in type."""
    try:
        yield
    except (InvalidInput, Slow):
        raise
    except Image.DecompressionBombError as exc:  # PIL's own limit on canvases and tiles, far above ours
        raise InvalidInput(f"image must have fewer pixels ({_one_line(exc)}): scale it down") from exc
    except Exception as exc:
        raise InvalidInput(
            f"image must be a whole {kind} file, but its {len(data):,} bytes are cut short or damaged "
            f"({_one_line(exc)}): send the file again in full, or save it anew"
        ) from exc


def _one_line(exc: Exception) -> str:
    return " ".join((str(exc) or type(exc).__name__).split())[:120].rstrip(".")


def _check_size(image: ImageFile, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise InvalidInput(
            f"image must have at most {limits.max_pixels:,} pixels and {limits.max_side:,} a side, "
            f"not {width:,} x {height:,}: scale it down"
        )


def _check_scans(image: ImageFile, data: bytes, limits: ImageLimits) -> None:
    """A few bytes can ask for one more pass over all pixels, and a file has room for many of those."""
    scans = data.count(START_OF_SCAN)
    if scans * image.width * image.height > limits.max_scans * limits.max_pixels or scans > MAX_SCANS:
        raise InvalidInput(f"a progressive JPEG must have fewer scans than {scans}: save it anew")


def _check_quick(image: ImageFile, limits: ImageLimits) -> None:
    """Raises Slow where an image may take longer than QUICK_SECONDS."""
    progressive = image.info.get("progressive")
    most = _QUICK_JPEG_PIXELS if isinstance(image, JpegImageFile) and not progressive else _QUICK_PIXELS
    most = _QUICK_PYTHON_PIXELS if _is_in_python(image) else most
    data = cast("_Timed", image.fp).getvalue()
    passes = max(1, data.count(START_OF_SCAN) / limits.max_scans) if progressive else 1
    if image.width * image.height * passes > most or len(data) > _QUICK_BYTES:
        raise Slow
    if isinstance(image, TiffImageFile):
        sizes = image.tag_v2.get(STRIPBYTECOUNTS) or image.tag_v2.get(TILEBYTECOUNTS)
        if not isinstance(sizes, tuple) or sum(sizes) > len(data):  # the same strips may be read again and again
            raise Slow


def _is_in_python(image: ImageFile) -> bool:
    """Whether PIL's decoder is not written in C, as that of run-length encoded BMP files: it holds Python's lock."""
    return any(tile.codec_name in Image.DECODERS for tile in image.tile)


def _shrink(image: ImageFile, side: int) -> Size | None:
    """Have a JPEG file decoded at a fraction of its size, no side below `side`; what it measures then, in pixels."""
    done = image.draft(None, (side, side))
    return done and done[1][2:]


def orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 (upright) where there is none. Unreadable EXIF is no reason to refuse an image."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _upright(image: Image.Image, extent: Size, turn: Turn | None) -> tuple[Image.Image, Box]:
    """An image turned, and the box of its pixels that holds the picture: its last ones may be in it in part only."""
    width, height = extent
    if turn is None:
        return image, (0, 0, width, height)
    image = image.transpose(turn.method)
    if turn.swaps_axes:
        width, height = height, width
    # last ones that are mirrored are the first ones
    left = image.width - width if turn.mirrors_columns else 0
    top = image.height - height if turn.mirrors_rows else 0
    return image, (left, top, left + width, top + height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB, transparency laid on white by the reference's own steps."""
    if image.mode in ("I", "F"):
        samples = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise InvalidInput(
            f"image must have unsigned samples of at most 16 bits, but this file has {samples} ones: "
            "save it with 8 bits a sample"
        )
    if image.mode.startswith("I;16"):
        image = _narrow(image)
    if image.mode == "La":  # premultiplied, which PIL converts to nothing else
        image = image.convert("LA")
    if image.format == "BMP" and image.mode == "RGBA" and image.getbbox() is None:  # that has no alpha in truth
        image = image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit: the high byte, which is what PIL keeps of 16-bit colour."""
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITSPERSAMPLE, (16,))  # or 12, in TIFF
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which PIL minds only up to 8 bits
        grey = ~grey
    return Image.fromarray(grey)


def _stretch(picture: Box, side: int) -> tuple[Box, tuple[int, int]]:
    return picture, (side, side)


def _center_crop(picture: Box, side: int) -> tuple[Box, tuple[int, int]]:
    left, top, right, bottom = picture
    edge = min(right - left, bottom - top)
    left, top = left + (right - left - edge) / 2, top + (bottom - top - edge) / 2
    return (left, top, left + edge, top + edge), (side, side)


def _letterbox(picture: Box, side: int) -> tuple[Box, tuple[int, int]]:
    left, top, right, bottom = picture
    scale = side / max(right - left, bottom - top)
    width, height = (max(1, round(length * scale)) for length in (right - left, bottom - top))
    return picture, (width, height)


# Which part of an upright picture is resized to which size, if a square of `side` is to show it.
RESIZE_MODES = {"stretch": _stretch, "center_crop": _center_crop, "letterbox": _letterbox}


def in_square(pixels: Pixels, side: int) -> Pixels:
    """Pixels in the middle of a square, which most fill."""
    height, width, _ = pixels.shape
    if height == width == side:
        return pixels
    square = np.full((side, side, 3), LETTERBOX_COLOR, np.uint8)
    left, top = (side - width) // 2, (side - height) // 2
    square[top : top + height, left : left + width] = pixels
    return square
