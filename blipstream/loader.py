# SPDX-License-Identifier: Apache-2.0
"""Many encoded images to pixels at once, on as many cores as there are."""

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from blipstream.errors import InvalidInput, ServerError
from blipstream.images import JPEG_SCALING, Pixels, load_pixels

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

    def load(self, images: Sequence[bytes], modes: Sequence[str]) -> list[Pixels | InvalidInput]:
        """Each image's pixels, or why there are none."""
        return list(self._pool.map(self._load, images, modes))

    def _load(self, image: bytes, mode: str) -> Pixels | InvalidInput:
        try:
            return load_pixels(image, self.image_size, mode, jpeg_scaling=self._jpeg_scaling)
        except InvalidInput as exc:
            return exc
