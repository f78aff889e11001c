# SPDX-License-Identifier: Apache-2.0
"""Many encoded images to pixels at once, on as many cores as there are."""

import ctypes
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import TypeAlias

import numpy as np

from blipstream.errors import InvalidInput, ServerError
from blipstream.images import JPEG_SCALING, Pixels, load_pixels

Request: TypeAlias = tuple[Sequence[bytes], Sequence[str]]  # images, and how each is to be resized

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 4 << 20


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

    def load_requests(self, requests: Sequence[Request]) -> list[Pixels | InvalidInput]:
        """Each request's pixels [B, H, W, 3], or why there are none, with all images loaded at once."""
        faults = [_fault(*request) for request in requests]
        sound = [request for request, fault in zip(requests, faults, strict=True) if fault is None]
        images = [image for images, _ in sound for image in images]
        modes = [mode for _, modes in sound for mode in modes]
        loaded = iter(self.load(images, modes))
        return [
            fault or _stack(islice(loaded, len(images))) for (images, _), fault in zip(requests, faults, strict=True)
        ]

    def load(self, images: Sequence[bytes], modes: Sequence[str]) -> list[Pixels | InvalidInput]:
        """Each image's pixels, or why there are none."""
        return list(self._pool.map(self._load, images, modes))

    def _load(self, image: bytes, mode: str) -> Pixels | InvalidInput:
        try:
            return load_pixels(image, self.image_size, mode, jpeg_scaling=self._jpeg_scaling)
        except InvalidInput as exc:
            return exc


def _fault(images: Sequence[bytes], modes: Sequence[str]) -> InvalidInput | None:
    """What is wrong with a request before its images are looked at."""
    if not images:
        return InvalidInput("image must be given: send the bytes of at least one")
    if len(modes) != len(images):
        return InvalidInput(f"resize_mode must have a row for each image, {len(images)}, not {len(modes)}")
    return None


def _stack(loaded: Iterable[Pixels | InvalidInput]) -> Pixels | InvalidInput:
    """A request's images in one; an error of any stands for all."""
    pixels, error = [], None
    for each in loaded:
        if isinstance(each, InvalidInput):
            error = error or each
        else:
            pixels.append(each)
    return error or np.stack(pixels)
