# SPDX-License-Identifier: Apache-2.0
"""Images of any kind -> the encoded bytes to send."""

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

from blipstream_client._deadline import Deadline
from blipstream_client._exceptions import InvalidImage
from blipstream_client._files import MAX_BYTES, TOO_LARGE, read_file, read_path
from blipstream_client._text import excerpt

ImageLike: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # that the server takes. PIL's JPEG opens MPO, too
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}  # PNG holds them without loss
PNG_COMPRESS_LEVEL = 1  # of 9: the fastest that still compresses
SCALABLE_MODES = {"L", "LA", "RGB", "RGBA", "CMYK"}  # the others cannot be interpolated
JPEG_QUALITY = 95  # of scaled images

ARRAY = "a uint8 array of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with values 0 to 255"
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA

# How to scale values to 0 to 255, by PIL mode and by numpy's kind of dtype. Only the caller knows the range.
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
    """The encoded bytes of an image. Files and bytes stay as they are; PIL images and arrays become PNG.

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
        case _ if callable(getattr(image, "read", None)):
            encoded = read_file(image, deadline)
        case _:
            raise InvalidImage(
                f"Expected a path, bytes, a binary file, a PIL image or a numpy array, got {type(image).__name__}"
                f"{': for several images, use caption_many' if isinstance(image, list | tuple | Iterator) else ''}"
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
    """How to mend an array that holds an image in another form. "" if it holds none."""
    array_text = "array"
    if not right_shape:
        if array.ndim != 3 or array.shape[0] not in CHANNELS:
            return ": send one image at a time, its channels last"
        array_text = "array.transpose(1, 2, 0)"
    remedy = "{array}" if array.dtype == np.uint8 else ARRAY_REMEDIES.get(array.dtype.kind)
    return f": send {remedy.format(array=array_text)}" if remedy and array.size else ""


def _png(image: Image.Image) -> bytes:
    try:
        # a copy: _saved removes metadata, and the caller's image keeps its own
        drawable = image.copy() if image.mode in PNG_MODES else _in_8_bits(image)
        return _saved(drawable, "PNG", _orientation(image), compress_level=PNG_COMPRESS_LEVEL)
    except InvalidImage:
        raise
    except Exception as exc:  # PIL decodes only now. On bad data it raises nearly every built-in type
        raise InvalidImage(f"Cannot encode the PIL image as PNG: {excerpt(exc)}") from exc


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The image in L, LA, RGB or RGBA, as the server would decode its file. Raises InvalidImage."""
    image.load()  # before, PIL may not know the palette
    if image.mode in IMAGE_REMEDIES:
        raise InvalidImage(
            f"Expected a PIL image with samples of 8 or 16 bits, got mode {image.mode}, which says nothing of its"
            f" range: send {IMAGE_REMEDIES[image.mode]}"
        )
    if image.mode.startswith("I;16"):
        return _high_bits(image)
    if image.mode == "La":  # premultiplied: PIL converts it to nothing else
        return image.convert("LA")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _high_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, as the server does it. A TIFF file may have 12 bits, or white as zero."""
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITSPERSAMPLE, (16,))
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(~grey if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else grey)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, as the server would read it from the file. 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on bad metadata PIL raises nearly every built-in type
        return 1


def _saved(image: Image.Image, kind: str, orientation: int, **options: Any) -> bytes:  # noqa: ANN401
    """The image as a file. Of its metadata, only orientation and transparency stay, which the server needs."""
    image.info = {name: value for name, value in image.info.items() if name == "transparency"}
    if orientation in range(2, 9):
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """The image, of which only the header is read. Raises any of PIL's exceptions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the server has the limit
        yield Image.open(io.BytesIO(encoded), formats=FORMATS)


def shrink(encoded: bytes, max_side: int) -> bytes:
    """The image scaled down so that no side is longer than `max_side` pixels. A smaller image stays as it is.

    JPEG stays JPEG, and any other format becomes PNG. The orientation is kept. An image that cannot be scaled stays as
    it is, and the server decides.
    """
    try:
        with opened(encoded) as image:
            if max(image.size) <= max_side:
                return encoded
            is_jpeg = image.format in ("JPEG", "MPO")  # MPO: several JPEGs in one file, as phones write them
            scalable = image.mode in SCALABLE_MODES and "transparency" not in image.info
            small = image if scalable else _in_8_bits(image)
            small.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
            orientation = _orientation(image)  # only now: PIL turns TIFF images upright while it decodes them
            if is_jpeg:
                return _saved(small, "JPEG", orientation, quality=JPEG_QUALITY)
            drawable = small if small.mode in PNG_MODES else small.convert("RGB")
            return _saved(drawable, "PNG", orientation, compress_level=PNG_COMPRESS_LEVEL)
    except Exception:  # on bad data PIL raises nearly every built-in type
        return encoded
