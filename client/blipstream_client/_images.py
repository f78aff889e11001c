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
from PIL import Image

from blipstream_client._exceptions import InvalidImage
from blipstream_client._files import MAX_BYTES, TOO_LARGE, read_file, read_path
from blipstream_client._transport import Deadline

ImageLike: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # that the server takes; PIL's JPEG opens MPO, too
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}  # what PNG holds without loss
PNG_COMPRESS_LEVEL = 1  # of 9: the fastest that still compresses
SCALABLE_MODES = {"L", "LA", "RGB", "RGBA", "CMYK", "I;16"}  # others have no colours between two colours
JPEG_QUALITY = 95  # of what is shrunk


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
    right_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not right_shape or array.size == 0:
        raise InvalidImage(
            "Expected a uint8 array of shape [H, W, 3] or [H, W] with values 0 to 255,"
            f" got {array.dtype} of shape {list(array.shape)}"
        )
    return Image.fromarray(array)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    try:
        drawable = image if image.mode in PNG_MODES else image.convert("RGB")
        # Exif says which way up a photograph is, so it has to travel too
        drawable.save(buffer, "PNG", compress_level=PNG_COMPRESS_LEVEL, exif=image.getexif())
    except Exception as exc:  # PIL decodes only now, and on bad data raises nearly every built-in type
        raise InvalidImage(f"Cannot encode the PIL image as PNG: {exc}") from exc
    return buffer.getvalue()


@contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """An image of which the header is read. Raises whatever PIL does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # how large it may be is up to the server
        yield Image.open(io.BytesIO(encoded), formats=FORMATS)


def shrink(encoded: bytes, max_side: int) -> bytes:
    """The same picture with no side longer than `max_side` pixels, or the very same bytes if it has none.

    JPEG stays JPEG and the rest becomes PNG; the Exif orientation travels along. What cannot be scaled is left as it
    is, for the server to judge.
    """
    try:
        with opened(encoded) as image:
            if max(image.size) <= max_side:
                return encoded
            is_jpeg = image.format in ("JPEG", "MPO")  # MPO: several in one file, as telephones write them
            small = (
                image
                if image.mode in SCALABLE_MODES
                else image.convert("RGBA" if "transparency" in image.info else "RGB")
            )
            small.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
            return _jpeg(small) if is_jpeg else _png(small)
    except Exception:  # on bad data PIL raises nearly every built-in type
        return encoded


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile")
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, exif=image.getexif(), icc_profile=profile)
    return buffer.getvalue()
