# SPDX-License-Identifier: Apache-2.0
"""The pixels that transformers' image processor makes, which ours are compared with."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.images.pixels import load_pixels

SIDE = 96


def reference_pixels(image: Image.Image, side: int = SIDE) -> Any:
    """uint8 [side, side, 3]: what transformers resizes an image to, before it rescales."""
    processor = BlipImageProcessorPil(size={"height": side, "width": side}, do_rescale=False, do_normalize=False)
    return np.moveaxis(np.asarray(processor(image)["pixel_values"][0]), 0, -1)


def assert_equals_reference(data: bytes, side: int = SIDE) -> None:
    pixels = load_pixels(data, side)
    assert pixels.shape == (side, side, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, reference_pixels(Image.open(BytesIO(data)), side))
