# SPDX-License-Identifier: Apache-2.0
"""What an image may cost: bytes, pixels, scans and processor time.

An image is either quick or it may be slow. A quick image is sure to decode within about QUICK_SECONDS, so it is decoded
together with other requests' images. One that may be slow is decoded apart, in a time budget that grows with its size.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias, cast

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import STRIPBYTECOUNTS, TILEBYTECOUNTS, TiffImageFile

from blipstream.errors import InvalidImage


@dataclass(frozen=True)
class ImageLimits:
    """The limits of one image. Pixels and sides are read from its header, before it is decoded."""

    max_bytes: int = 32 * 2**20  # encoded
    max_pixels: int = 100_000_000  # decoding takes 4 bytes a pixel, transparency 16
    max_side: int = 65_535  # pixels, as in JPEG
    max_scans: int = 16  # passes over all pixels of a progressive JPEG of max_pixels; a smaller one may have more
    # Processor time, about twice what the slowest honest files take:
    seconds: float = 1.0  # for any file,
    seconds_for_pixels: float = 9.0  # more for one of max_pixels,
    seconds_for_bytes: float = 3.0  # and more for one of max_bytes

    def budget(self, num_bytes: int, pixels: float = 0) -> float:
        """The seconds of processor time that a file of this size may take."""
        for_pixels = self.seconds_for_pixels * pixels / self.max_pixels
        return self.seconds + for_pixels + self.seconds_for_bytes * num_bytes / self.max_bytes


DEFAULT_LIMITS = ImageLimits()
MAX_SCANS = 1_000  # of a JPEG file, however small; scans of thumbnails in its metadata count too
START_OF_SCAN = b"\xff\xda"  # JPEG's marker

# Decoders are stopped when they read on. These bound what a decoder does between two reads.
QUICK_SECONDS = 0.1  # of processor time
_QUICK_BYTES = 2 * 2**20
_QUICK_PIXELS = 2_000_000
_QUICK_JPEG_PIXELS = 4_000_000  # of a JPEG file that is not progressive
_QUICK_PYTHON_PIXELS = 40_000  # of a file that PIL decodes in Python

# PIL decodes run-length encoded BMP files in Python. Where such a file has bytes for its pixels, that is fast as well,
# so pixels alone count for less.
_PYTHON_PIXEL_SHARE = 0.25

TOO_SLOW = "image takes too long to decode for its size: save it again as JPEG or PNG"

SetAlarm: TypeAlias = Callable[[float], object]  # is told how many seconds of processor time an image has in all


class MayBeSlow(Exception):
    """An image is not quick. Never leaves this folder."""


class TimeBudget:
    """The processor time that the calling thread may spend on one image, counted from here on."""

    def __init__(self, seconds: float, quick: bool, set_alarm: SetAlarm | None) -> None:
        self._start = time.thread_time()
        self._quick, self._set_alarm = quick, set_alarm
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Change the budget to so many seconds, counted from the start."""
        self._end = self._start + seconds
        if self._set_alarm:
            self._set_alarm(seconds)

    def check(self) -> None:
        """Raises InvalidImage if the budget is spent; MayBeSlow instead if the image was to be quick."""
        if time.thread_time() >= self._end:
            raise MayBeSlow if self._quick else InvalidImage(TOO_SLOW)


class BudgetedFile(BytesIO):
    """A file in memory that can be read until a time budget is spent."""

    def __init__(self, data: bytes, budget: TimeBudget) -> None:
        super().__init__(data)
        self._budget = budget

    def read(self, size: int | None = -1) -> bytes:
        """Raises InvalidImage or MayBeSlow, as TimeBudget.check."""
        self._budget.check()
        return super().read(size)


def decoding_budget(image: ImageFile, num_bytes: int, limits: ImageLimits) -> float:
    """The seconds of processor time that an image may take, now that its header is read."""
    share = _PYTHON_PIXEL_SHARE if _is_decoded_in_python(image) else 1
    return limits.budget(num_bytes, image.width * image.height * share)


def check_bytes(num_bytes: int, limits: ImageLimits) -> None:
    """Raises InvalidImage if an encoded image is too large."""
    if num_bytes > limits.max_bytes:
        raise InvalidImage(
            f"image must have at most {limits.max_bytes:,} bytes, not {num_bytes:,}: scale it down or compress it more"
        )


def check_size(image: ImageFile, limits: ImageLimits) -> None:
    """Raises InvalidImage if an image has too many pixels."""
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise InvalidImage(
            f"image must have at most {limits.max_pixels:,} pixels and {limits.max_side:,} a side, "
            f"not {width:,} x {height:,}: scale it down"
        )


def check_scans(image: ImageFile, data: bytes, limits: ImageLimits) -> None:
    """Raises InvalidImage if a JPEG file has too many scans.

    A few bytes make one more scan, which is a pass over all pixels, and a file has room for many of them.
    """
    scans = data.count(START_OF_SCAN)
    if scans * image.width * image.height > limits.max_scans * limits.max_pixels or scans > MAX_SCANS:
        raise InvalidImage(f"a progressive JPEG must have fewer scans than {scans}: save it again")


def check_quick(image: ImageFile, limits: ImageLimits) -> None:
    """Raises MayBeSlow if an opened image may take longer than QUICK_SECONDS."""
    data = cast(BudgetedFile, image.fp).getvalue()
    progressive = image.info.get("progressive")
    passes = max(1, data.count(START_OF_SCAN) / limits.max_scans) if progressive else 1
    if _is_decoded_in_python(image):
        max_pixels = _QUICK_PYTHON_PIXELS
    else:
        is_one_pass_jpeg = isinstance(image, JpegImageFile) and not progressive
        max_pixels = _QUICK_JPEG_PIXELS if is_one_pass_jpeg else _QUICK_PIXELS
    if image.width * image.height * passes > max_pixels or len(data) > _QUICK_BYTES:
        raise MayBeSlow
    if isinstance(image, TiffImageFile):
        sizes = image.tag_v2.get(STRIPBYTECOUNTS) or image.tag_v2.get(TILEBYTECOUNTS)
        if not isinstance(sizes, tuple) or sum(sizes) > len(data):  # a TIFF file may name the same strip many times
            raise MayBeSlow


def _is_decoded_in_python(image: ImageFile) -> bool:
    """Whether PIL's decoder is not written in C, so that it holds Python's lock."""
    return any(tile.codec_name in Image.DECODERS for tile in image.tile)
