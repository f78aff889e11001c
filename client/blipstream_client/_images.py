# SPDX-License-Identifier: Apache-2.0
"""Whatever the caller calls an image -> the encoded bytes to send."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from blipstream_client._exceptions import InvalidImage, excerpt
from blipstream_client._files import MAX_BYTES, TOO_LARGE, read_file, read_path
from blipstream_client._transport import Deadline

ImageLike: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # that the server takes; PIL's JPEG opens MPO, too
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}  # what PNG holds without loss
PNG_COMPRESS_LEVEL = 1  # of 9: the fastest that still compresses
SCALABLE_MODES = {"L", "LA", "RGB", "RGBA", "CMYK"}  # others have no colours between two colours
JPEG_QUALITY = 95  # of what is shrunk

ARRAY = "a uint8 array of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with values 0 to 255"
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA

# How to make one's own range 0 to 255, which nobody else knows: by PIL mode, and by numpy's kind of type.
IMAGE_REMEDIES = {
    "F": 'image.point(lambda value: value * 255).convert("L"), if its values are 0 to 1',
    "I": 'image.point(lambda value: value * (1 / 256)).convert("L"), if its values are 0 to 65535',
}
ARRAY_REMEDIES = {
    "b": '({array} * 255).astype("uint8")',
    "f": '({array} * 255).round().astype("uint8"), if its values are 0 to 1',
    "i": '{array}.clip(0, 255).astype("uint8"), if that is its range',
    "u": '({array} >> 8).astype("uint8"), if its values are 0 to 65535',
}


def encode(image: ImageLike, deadline: Deadline | None = None) -> bytes:
    """Encoded image bytes: those of a path, bytes or file as they are; PIL images and arrays as PNG.

    Raises InvalidImage, or RequestTimeout if a file object has not ended by the deadline.
    """
    match image:
        case str() | os.PathLike():
            encoded = read_path(image)
        case bytes() | bytearray() | memoryview():
            if memoryview(image).nbytes > MAX_BYTES:
                raise InvalidImage(f"Cannot send the image: {TOO_LARGE}")
            encoded = bytes(image)
        case Image.Image():
            encoded = _png(image)
        case np.ndarray():
            encoded = _png(_from_array(image))
        case _ if hasattr(image, "read"):
            encoded = read_file(image, deadline)
        case _:
            raise InvalidImage(
                f"Expected a path, bytes, a binary file, a PIL image or a numpy array, got {type(image).__name__}"
            )
    if not encoded:
        raise InvalidImage("Expected the bytes of an encoded image such as JPEG or PNG, got 0 bytes")
    return encoded


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    right_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)
    if array.dtype != np.uint8 or not right_shape or array.size == 0:
        got = excerpt(f"{array.dtype} of shape {list(array.shape)}")
        raise InvalidImage(f"Expected {ARRAY}, got {got}{_remedy(array, right_shape)}")
    return Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array)


def _remedy(array: npt.NDArray[Any], right_shape: bool) -> str:
    """What to send instead of an array, if there is a picture in it."""
    turned = "array"
    if not right_shape:
        if array.ndim != 3 or array.shape[0] not in CHANNELS:
            return ": send one image at a time, its channels last"
        turned = "array.transpose(1, 2, 0)"
    remedy = "{array}" if array.dtype == np.uint8 else ARRAY_REMEDIES.get(array.dtype.kind)
    return f": send {remedy.format(array=turned)}" if remedy and array.size else ""


def _png(image: Image.Image) -> bytes:
    try:
        # a copy, since the caller's keeps its metadata
        drawable = image.copy() if image.mode in PNG_MODES else _in_8_bits(image)
        return _saved(drawable, "PNG", _orientation(image), compress_level=PNG_COMPRESS_LEVEL)
    except InvalidImage:
        raise
    except Exception as exc:  # PIL decodes only now, and on bad data raises nearly every built-in type
        raise InvalidImage(f"Cannot encode the PIL image as PNG: {excerpt(exc)}") from exc


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey or colours, with their transparency, as the server would see the file. Raises InvalidImage."""
    image.load()  # before which PIL may not know the palette
    if image.mode in IMAGE_REMEDIES:
        raise InvalidImage(
            f"Expected a PIL image with samples of 8 or 16 bits, got mode {image.mode}, which says nothing of its"
            f" range: send {IMAGE_REMEDIES[image.mode]}"
        )
    if image.mode.startswith("I;16"):
        return _high_bits(image)
    if image.mode == "La":  # premultiplied, which PIL converts to nothing else
        return image.convert("LA")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _high_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, by the server's own rule: TIFF may have 12 bits of them, or white as zero."""
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITSPERSAMPLE, (16,))
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(~grey if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else grey)


def _orientation(image: Image.Image) -> int:
    """Which way up a photograph is, as the server would read it from the file; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on bad metadata PIL raises nearly every built-in type
        return 1


def _saved(image: Image.Image, kind: str, orientation: int, **options: Any) -> bytes:  # noqa: ANN401
    """A file of the image, which loses its metadata: the server needs none but orientation and transparency."""
    image.info = {name: value for name, value in image.info.items() if name == "transparency"}
    if orientation in range(2, 9):
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """An image of which the header is read. Raises whatever PIL does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # how large it may be is up to the server
        yield Image.open(io.BytesIO(encoded), formats=FORMATS)


def shrink(encoded: bytes, max_side: int) -> bytes:
    """The same picture with no side longer than `max_side` pixels, or the very same bytes if it has none.

    JPEG stays JPEG and the rest becomes PNG; the orientation travels along. What cannot be scaled is left as it
    is, for the server to judge.
    """
    try:
        with opened(encoded) as image:
            if max(image.size) <= max_side:
                return encoded
            is_jpeg = image.format in ("JPEG", "MPO")  # MPO: several in one file, as telephones write them
            scalable = image.mode in SCALABLE_MODES and "transparency" not in image.info
            small = image if scalable else _in_8_bits(image)
            small.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
            orientation = _orientation(image)  # only now: PIL sets TIFF files upright while it decodes them
            if is_jpeg:
                return _saved(small, "JPEG", orientation, quality=JPEG_QUALITY)
            drawable = small if small.mode in PNG_MODES else small.convert("RGB")
            return _saved(drawable, "PNG", orientation, compress_level=PNG_COMPRESS_LEVEL)
    except Exception:  # on bad data PIL raises nearly every built-in type
        return encoded
