# SPDX-License-Identifier: Apache-2.0
"""Loads the images of many requests at once, on all cores. Images that may be slow are loaded apart."""

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import LifoQueue
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np

from blipstream.deadline import Deadline
from blipstream.errors import BlipstreamError, InvalidInput, Overloaded, ServerError, report, without_frames
from blipstream.images.limits import DEFAULT_LIMITS, MayBeSlow
from blipstream.images.pixels import JPEG_SCALING, load_pixels
from blipstream.images.resize import DEFAULT_RESIZE_MODE
from blipstream.images.shapes import Pixels, check_pixels
from blipstream.images.worker import ImageWorker

M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
LARGE_BYTES = 4 << 20  # buffers from this size on go back to the system with their image
# Of images that may be slow, waiting or in work:
MAX_SLOW_IMAGES = 128  # how many there may be,
MAX_SLOW_BYTES = 8 * DEFAULT_LIMITS.max_bytes  # and how many bytes their requests may have


class ImageRequest(NamedTuple):
    """Images and how to resize each, or pixels that the client has made of them."""

    images: Sequence[bytes] = ()
    modes: Sequence[str] = ()  # empty: DEFAULT_RESIZE_MODE for each image
    pixels: Pixels | None = None  # [B, H, W, 3]
    deadline: Deadline | None = None

    @property
    def num_images(self) -> int:
        """How many images it asks for."""
        return len(self.images if self.pixels is None else self.pixels)

    @property
    def num_bytes(self) -> int:
        """How many bytes it holds."""
        return sum(map(len, (*self.images, *self.modes))) + (0 if self.pixels is None else self.pixels.nbytes)

    @property
    def resize_modes(self) -> Sequence[str]:
        """The mode of each image."""
        return self.modes or [DEFAULT_RESIZE_MODE] * len(self.images)


Loaded: TypeAlias = Pixels | BlipstreamError  # an image's pixels [H, W, 3], a request's [B, H, W, 3], or an error


def numbered(error: BlipstreamError, number: int, count: int) -> BlipstreamError:
    """The error of one image of a request that has several: it says which image, counted from 1."""
    if count == 1 or not isinstance(error, InvalidInput):
        return error
    subject, sentence = f"image {number} of {count}", str(error)
    rest = sentence.removeprefix("image")
    return type(error)(f"{subject}{rest}" if rest.startswith(" ") else f"{subject}: {sentence}")


class ImageLoader:
    """Loads quick images in threads, since PIL decodes and resizes outside Python's lock.

    Images that may be slow are loaded in worker processes, which can be ended when an image's time budget is spent.
    """

    def __init__(self, image_size: int, jpeg_scaling: str = "exact", processes: int = 1) -> None:
        """`processes` is how many loaders share the machine. Raises ServerError if `jpeg_scaling` is unknown."""
        if jpeg_scaling not in JPEG_SCALING:
            raise ServerError(f"jpeg_scaling must be one of {', '.join(JPEG_SCALING)}, not {jpeg_scaling!r}")
        self.image_size = image_size
        self._jpeg_scaling = jpeg_scaling
        cores = len(os.sched_getaffinity(0))
        threads = max(1, cores // processes)
        self._quick_pool = ThreadPoolExecutor(threads)
        self._slow_pool = ThreadPoolExecutor(threads)
        self._workers: LifoQueue[ImageWorker] = LifoQueue()  # last in, first out: most never need to start
        for _ in range(threads):
            self._workers.put(ImageWorker(image_size, jpeg_scaling))
        self._slow_images, self._slow_bytes, self._slow_lock = 0, 0, Lock()
        # By default, glibc would soon take large buffers from its heaps, of which each thread has one, and leave holes
        # there that nothing else fits into.
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)

    def load_requests(self, requests: Sequence[ImageRequest]) -> list[Loaded | Future[Loaded]]:
        """Each request's pixels or error; a future of them if one of its images may be slow.

        All quick images of all requests are loaded together.
        """
        errors = [self._find_error(request) for request in requests]
        valid = [request for request, error in zip(requests, errors, strict=True) if error is None]
        images = [image for request in valid for image in request.images]
        modes = [mode for request in valid for mode in request.resize_modes]
        loaded = iter(self.load_quick(images, modes))
        return [
            error or self._finish(request, list(islice(loaded, len(request.images))))
            for request, error in zip(requests, errors, strict=True)
        ]

    def load_quick(self, images: Sequence[bytes], modes: Sequence[str]) -> list[Loaded | None]:
        """Each image's pixels or error; None if it may be slow."""
        return list(self._quick_pool.map(self._load_quick, images, modes))

    def _find_error(self, request: ImageRequest) -> BlipstreamError | None:
        """What is wrong with a request, before its images are decoded."""
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

    def _load_quick(self, image: bytes, mode: str) -> Loaded | None:
        try:
            return load_pixels(image, self.image_size, mode, jpeg_scaling=self._jpeg_scaling, quick=True)
        except MayBeSlow:
            return None
        except Exception as exc:
            return report(exc)

    def _finish(self, request: ImageRequest, loaded: Sequence[Loaded | None]) -> Loaded | Future[Loaded]:
        """A valid request's pixels or error; if not all of its images are loaded yet, a future of them."""
        if request.pixels is not None:
            return request.pixels
        wrong = ((number, each) for number, each in enumerate(loaded, 1) if isinstance(each, BlipstreamError))
        error = next((numbered(each, number, len(loaded)) for number, each in wrong), None)
        if error or all(each is not None for each in loaded):
            return error or np.stack([each for each in loaded if isinstance(each, np.ndarray)])
        num_slow = sum(each is None for each in loaded)
        with self._slow_lock:
            images, size = self._slow_images + num_slow, self._slow_bytes + request.num_bytes
            if self._slow_images and (images > MAX_SLOW_IMAGES or size > MAX_SLOW_BYTES):
                return Overloaded("too many requests wait already whose images may be slow to decode: try again later")
            self._slow_images, self._slow_bytes = images, size
        return self._slow_pool.submit(self._load_slow, request, loaded, num_slow)

    def _load_slow(self, request: ImageRequest, loaded: Sequence[Loaded | None], num_slow: int) -> Loaded:
        """Load the images of a request that are not loaded yet, one after the other."""
        worker = self._workers.get()
        try:
            number, pixels = 0, list(loaded)
            for number, (image, mode) in enumerate(zip(request.images, request.resize_modes, strict=True), 1):
                if pixels[number - 1] is None:
                    pixels[number - 1] = worker.load(image, mode, request.deadline)
            return np.stack([each for each in pixels if isinstance(each, np.ndarray)])
        except Exception as exc:
            return numbered(report(exc), number, len(loaded))
        finally:
            self._workers.put(worker)
            with self._slow_lock:
                self._slow_images -= num_slow
                self._slow_bytes -= request.num_bytes
