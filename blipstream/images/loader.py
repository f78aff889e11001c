# SPDX-License-Identifier: Apache-2.0
"""Many encoded images to pixels at once, on as many cores as there are; those that may take long, apart."""

import ctypes
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import LifoQueue
from threading import Lock
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from blipstream.deadline import Deadline
from blipstream.errors import BlipstreamError, InvalidInput, Overloaded, ServerError, report, without_frames
from blipstream.images.pixels import DEFAULT_LIMITS, DEFAULT_RESIZE_MODE, JPEG_SCALING, Pixels, Slow, load_pixels
from blipstream.images.worker import ImageWorker
from blipstream.options import OPTION_NAMES, DecodingOptions
from blipstream.vision.encoder import check_pixels

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 4 << 20
MAX_SLOW = 128  # images that may take long, waiting or under way,
MAX_SLOW_BYTES = 8 * DEFAULT_LIMITS.max_bytes  # and bytes of the requests that have them


class Request(NamedTuple):
    """Images and how each is to be resized, or pixels that a client made of them."""

    images: Sequence[bytes] = ()
    modes: Sequence[str] = ()  # none: DEFAULT_RESIZE_MODE for each
    pixels: Pixels | None = None  # uint8 [B, H, W, 3]
    deadline: Deadline | None = None  # of who waits for them

    @classmethod
    def of(cls, tensors: Mapping[str, Any], deadline: Deadline, positions: int) -> Self:
        """What arrays [B, 1] of `image` and `resize_mode`, or one of `pixels`, ask for.

        Raises InvalidInput where a decoder of so many positions would refuse the options later.
        """
        images, modes = (list(tensors[name].flat) if name in tensors else [] for name in ("image", "resize_mode"))
        pixels = tensors.get("pixels")
        request = cls(images, [mode.decode(errors="replace") for mode in modes], pixels, deadline)
        options = {name: tensors[name] for name in OPTION_NAMES if name in tensors}
        if options:
            DecodingOptions.from_rows(options, request.num_images, positions)
        return request

    @property
    def num_images(self) -> int:
        """How many it is for."""
        return len(self.images if self.pixels is None else self.pixels)


Loaded: TypeAlias = Pixels | BlipstreamError  # a request's pixels [B, H, W, 3], or why there are none
Quick: TypeAlias = Loaded | None  # of one image; nothing if it may take long


class ImageLoader:
    """Loads images in threads, since PIL decodes and resizes outside Python's lock, or else in processes of their own.

    Those are for images that may take long: what takes longer than its size is worth is ended there.
    """

    def __init__(self, image_size: int, jpeg_scaling: str = "exact", processes: int = 1) -> None:
        """`processes` is how many of its kind share the machine."""
        if jpeg_scaling not in JPEG_SCALING:
            raise ServerError(f"jpeg_scaling must be one of {', '.join(JPEG_SCALING)}, not {jpeg_scaling!r}")
        self.image_size = image_size
        self._jpeg_scaling = jpeg_scaling
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // processes)
        self._pool = ThreadPoolExecutor(threads)
        self._slow_pool = ThreadPoolExecutor(threads)
        self._workers: LifoQueue[ImageWorker] = LifoQueue()  # so that they start when they are needed
        for _ in range(threads):
            self._workers.put(ImageWorker(image_size, jpeg_scaling))
        self._slow, self._slow_bytes, self._counting = 0, 0, Lock()
        # Large buffers go back to the system with their image. Left to itself, glibc would soon take them from its
        # heaps, one for each thread, and leave holes there that nothing fits
        with suppress(AttributeError):  # no glibc
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)

    def load_requests(self, requests: Sequence[Request]) -> list[Loaded | Future[Loaded]]:
        """What each gets, with all images loaded at once; of one whose images may take long, later."""
        faults = [self._fault(request) for request in requests]
        sound = [request for request, fault in zip(requests, faults, strict=True) if fault is None]
        images = [image for request in sound for image in request.images]
        modes = [mode for request in sound for mode in _modes(request)]
        loaded = iter(self.load_quick(images, modes))
        return [
            fault or self._answer(request, list(islice(loaded, len(request.images))))
            for request, fault in zip(requests, faults, strict=True)
        ]

    def load_quick(self, images: Sequence[bytes], modes: Sequence[str]) -> list[Quick]:
        """Each image's pixels, or why there are none; nothing for what may take long."""
        return list(self._pool.map(self._load_quick, images, modes))

    def _fault(self, request: Request) -> BlipstreamError | None:
        """What is wrong with a request before its images are looked at."""
        images, modes, pixels, deadline = request
        if not request.num_images:
            return InvalidInput("image must be given: send the bytes of at least one")
        if pixels is None and modes and len(modes) != len(images):
            return InvalidInput(f"resize_mode must have a row for each image, {len(images)}, not {len(modes)}")
        if pixels is not None and images:
            return InvalidInput("image or pixels must be given, not both: leave one out")
        try:
            if deadline is not None:
                deadline.left()
            if pixels is not None:
                check_pixels(pixels, self.image_size)
        except BlipstreamError as exc:
            return without_frames(exc)
        return None

    def _load_quick(self, image: bytes, mode: str) -> Quick:
        try:
            return load_pixels(image, self.image_size, mode, jpeg_scaling=self._jpeg_scaling, quick=True)
        except Slow:
            return None
        except Exception as exc:
            return report(exc)

    def _answer(self, request: Request, loaded: Sequence[Quick]) -> Loaded | Future[Loaded]:
        """What a sound request gets, of whose images these were quick."""
        if request.pixels is not None:
            return request.pixels
        error = next((each for each in loaded if isinstance(each, BlipstreamError)), None)
        if error or all(each is not None for each in loaded):
            return error or np.stack([each for each in loaded if isinstance(each, np.ndarray)])
        count, size = sum(each is None for each in loaded), sum(map(len, request.images))
        with self._counting:
            if self._slow and (self._slow + count > MAX_SLOW or self._slow_bytes + size > MAX_SLOW_BYTES):
                return Overloaded("enough requests wait already whose images may take long: try again later")
            self._slow, self._slow_bytes = self._slow + count, self._slow_bytes + size
        return self._slow_pool.submit(self._load_slow, request, loaded, count, size)

    def _load_slow(self, request: Request, loaded: Sequence[Quick], count: int, size: int) -> Loaded:
        """The same, later: the rest is loaded one by one."""
        worker = self._workers.get()
        try:
            rest = zip(request.images, _modes(request), loaded, strict=True)
            return np.stack(
                [
                    had if isinstance(had, np.ndarray) else worker.load(image, mode, request.deadline)
                    for image, mode, had in rest
                ]
            )
        except Exception as exc:
            return report(exc)
        finally:
            self._workers.put(worker)
            with self._counting:
                self._slow, self._slow_bytes = self._slow - count, self._slow_bytes - size


def _modes(request: Request) -> Sequence[str]:
    return request.modes or [DEFAULT_RESIZE_MODE] * len(request.images)


def load_loader(device: str, image_size: int, processes: int, **parameters: str) -> ImageLoader:
    """The loader of a device; `processes` is how many of its kind share the machine."""
    if device == "cpu":
        return ImageLoader(image_size, processes=processes, **parameters)
    from blipstream.images.gpu_loader import GPUImageLoader

    return GPUImageLoader(image_size, device)
