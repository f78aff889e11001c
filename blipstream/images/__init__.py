# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels, as the model expects them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blipstream.images.loader import ImageLoader


def load_loader(device: str, image_size: int, processes: int, **parameters: str) -> "ImageLoader":
    """The loader of a device. `processes` is how many of its kind share the machine. Only that loader is imported."""
    if device == "cpu":
        from blipstream.images.loader import ImageLoader

        return ImageLoader(image_size, processes=processes, **parameters)
    from blipstream.images.gpu_loader import GPUImageLoader

    return GPUImageLoader(image_size, device)
