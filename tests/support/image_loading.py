# SPDX-License-Identifier: Apache-2.0
"""Loads images through an ImageLoader, one request each."""

from collections.abc import Sequence
from concurrent.futures import Future

from blipstream.errors import BlipstreamError
from blipstream.images.loader import ImageLoader, ImageRequest, Loaded
from blipstream.images.resize import DEFAULT_RESIZE_MODE


def load_each(loader: ImageLoader, images: Sequence[bytes], modes: Sequence[str] = ()) -> list[Loaded]:
    """Each image's pixels [H, W, 3] or error. All are requested together, and slow ones are waited for."""
    modes = modes or [DEFAULT_RESIZE_MODE] * len(images)
    requests = [ImageRequest([image], [mode]) for image, mode in zip(images, modes, strict=True)]
    loaded = [each.result() if isinstance(each, Future) else each for each in loader.load_requests(requests)]
    return [each if isinstance(each, BlipstreamError) else each[0] for each in loaded]
