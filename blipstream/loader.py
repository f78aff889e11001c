# SPDX-License-Identifier: Apache-2.0
"""Many encoded images to pixels at once, on as many cores as there are."""

import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np

from blipstream.encoders.base import check_pixels
from blipstream.errors import BlipstreamError, InvalidInput, ServerError, report, without_frames
from blipstream.images import DEFAULT_RESIZE_MODE, JPEG_SCALING, Pixels, load_pixels
from blipstream.options import OPTION_NAMES, DecodingOptions
from blipstream.patience import Patience

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 4 << 20


class Request(NamedTuple):
    """Images and how each is to be resized, or pixels that a client made of them."""

    images: Sequence[bytes] = ()
    modes: Sequence[str] = ()  # none: DEFAULT_RESIZE_MODE for each
    pixels: Pixels | None = None  # uint8 [B, H, W, 3]
    patience: Patience | None = None  # of who waits for them

    @classmethod
    def of(cls, tensors: Mapping[str, Any], patience: Patience) -> Self:
        """From a request's tensors, numpy. Raises InvalidInput where its decoder would refuse the options later."""
        images, modes = (list(tensors[name].flat) if name in tensors else [] for name in ("image", "resize_mode"))
        pixels = tensors.get("pixels")
        options = {name: tensors[name] for name in OPTION_NAMES if name in tensors}
        if options:
            DecodingOptions.from_rows(options, len(images if pixels is None else pixels))
        return cls(images, [mode.decode(errors="replace") for mode in modes], pixels, patience)


class ImageLoader:
    """Loads images in threads: PIL decodes and resizes outside Python's lock."""

    def __init__(self, image_size: int, *, jpeg_scaling: str = "exact", processes: int = 1) -> None:
        """`processes` is how many of its kind share the machine."""
        if jpeg_scaling not in JPEG_SCALING:
            raise ServerError(f"jpeg_scaling must be one of {', '.join(JPEG_SCALING)}, not {jpeg_scaling!r}")
        self.image_size = image_size
        self._jpeg_scaling = jpeg_scaling
        cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(max(1, cores // processes))
        # Large buffers go back to the system with their image. Left to itself, glibc would soon take them from its
        # heaps, one for each thread, and leave holes there that nothing fits
        with suppress(AttributeError):  # no glibc
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)

    def load_requests(self, requests: Sequence[Request]) -> list[Pixels | BlipstreamError]:
        """Each request's pixels [B, H, W, 3], or why there are none, with all images loaded at once."""
        faults = [self._fault(request) for request in requests]
        sound = [request for request, fault in zip(requests, faults, strict=True) if fault is None]
        images = [image for request in sound for image in request.images]
        modes = [mode for each in sound for mode in each.modes or [DEFAULT_RESIZE_MODE] * len(each.images)]
        loaded = iter(self.load(images, modes))
        return [fault or _answer(request, loaded) for request, fault in zip(requests, faults, strict=True)]

    def load(self, images: Sequence[bytes], modes: Sequence[str]) -> list[Pixels | BlipstreamError]:
        """Each image's pixels, or why there are none."""
        return list(self._pool.map(self._load, images, modes))

    def _fault(self, request: Request) -> BlipstreamError | None:
        """What is wrong with a request before its images are looked at."""
        images, modes, pixels, patience = request
        if not len(images if pixels is None else pixels):
            return InvalidInput("image must be given: send the bytes of at least one")
        if pixels is None and modes and len(modes) != len(images):
            return InvalidInput(f"resize_mode must have a row for each image, {len(images)}, not {len(modes)}")
        if pixels is not None and images:
            return InvalidInput("image or pixels must be given, not both: leave one out")
        try:
            if patience is not None:
                patience.left()
            if pixels is not None:
                check_pixels(pixels, self.image_size)
        except BlipstreamError as exc:
            return without_frames(exc)
        return None

    def _load(self, image: bytes, mode: str) -> Pixels | BlipstreamError:
        try:
            return load_pixels(image, self.image_size, mode, jpeg_scaling=self._jpeg_scaling)
        except Exception as exc:  # as where memory is short: no other image fails with this one
            return report(exc)


def _answer(request: Request, loaded: Iterator[Pixels | BlipstreamError]) -> Pixels | BlipstreamError:
    """A sound request's pixels: its own, or those of the next images that were loaded."""
    return request.pixels if request.pixels is not None else _stack(islice(loaded, len(request.images)))


def _stack(loaded: Iterable[Pixels | BlipstreamError]) -> Pixels | BlipstreamError:
    """A request's images in one; an error of any stands for all."""
    pixels, error = [], None
    for each in loaded:
        if isinstance(each, BlipstreamError):
            error = error or each
        else:
            pixels.append(each)
    return error or np.stack(pixels)
