# SPDX-License-Identifier: Apache-2.0
"""Any of PIL's color modes to RGB."""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from blipstream.errors import InvalidImage

WHITE_IS_ZERO = 0  # of TIFF's photometric interpretations


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, on white where it is transparent, by the same steps as the reference.

    Raises InvalidImage if its samples have no known range.
    """
    if image.mode in ("I", "F"):
        samples = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise InvalidImage(
            f"image must have unsigned samples of at most 16 bits, but this file has {samples} ones: "
            "save it with 8 bits a sample"
        )
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode == "La":  # premultiplied alpha: PIL converts it to LA and to nothing else
        image = image.convert("LA")
    if image.format == "BMP" and image.mode == "RGBA" and image.getbbox() is None:
        image = image.convert("RGB")  # an alpha channel of zeros: there is none in truth, and viewers ignore it
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The high byte of 16-bit grey, which is what PIL keeps of 16-bit color."""
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITSPERSAMPLE, (16,))  # TIFF also has 12 bits
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:  # PIL inverts it only up to 8 bits
        grey = ~grey
    return Image.fromarray(grey)
