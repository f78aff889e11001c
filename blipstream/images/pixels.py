# SPDX-License-Identifier: Apache-2.0
"""Encoded image bytes to pixels, exactly as transformers' PIL processor for BLIP resizes them.

Transparency is laid on white and the first frame of an animation counts, as in the reference. Three things differ from
it on purpose:

- EXIF orientation is applied.
- 16-bit grey is scaled to 8 bits; the reference clips it.
- A BMP file whose pixels are all fully transparent is opaque, as viewers show it.

A fault in anything but the pixels, such as metadata, is no reason to refuse a file.
"""

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from blipstream.errors import InvalidInput
from blipstream.images.colors import to_rgb
from blipstream.images.decode import open_image
from blipstream.images.limits import DEFAULT_LIMITS, ImageLimits, SetAlarm, check_quick
from blipstream.images.messages import excerpt
from blipstream.images.orientation import turn_of, turn_upright
from blipstream.images.resize import DEFAULT_RESIZE_MODE, RESIZE_MODES, pad_to_square
from blipstream.images.shapes import Pixels

# How JPEG files are decoded. "fast" lets the decoder shrink large ones by 2, 4 or 8, as long as each side keeps this
# many times the pixels that the model sees.
JPEG_SCALING = {"exact": None, "fast": 2}


def load_pixels(
    data: bytes,
    image_size: int,
    resize_mode: str = DEFAULT_RESIZE_MODE,
    limits: ImageLimits = DEFAULT_LIMITS,
    jpeg_scaling: str = "exact",
    *,
    quick: bool = False,
    set_alarm: SetAlarm | None = None,
) -> Pixels:
    """Decode and resize one image to uint8 [image_size, image_size, 3], RGB.

    Raises InvalidImage, and nothing else, whatever `data` holds, and InvalidInput if there is no such mode. With
    `quick`, also raises MayBeSlow if decoding may take longer than QUICK_SECONDS.

    Args:
        data: a file of one of FORMATS, or its base64 text.
        image_size: pixels a side.
        resize_mode: "stretch" ignores the aspect ratio, as the reference does. "center_crop" fits the shorter side
            and cuts the rest off evenly. "letterbox" fits the longer side and pads evenly with LETTERBOX_COLOR.
        limits: what the image may cost.
        jpeg_scaling: one of JPEG_SCALING.
        quick: whether other clients wait for this image.
        set_alarm: see open_image. It can end a decoder wherever it is; otherwise, time is checked only between reads.
    """
    if resize_mode not in RESIZE_MODES:
        raise InvalidInput(f"resize_mode must be one of {', '.join(RESIZE_MODES)}, not {excerpt(resize_mode)}")
    with open_image(data, limits, quick=quick, set_alarm=set_alarm) as image:
        if quick:
            check_quick(image, limits)
        oversize = JPEG_SCALING[jpeg_scaling]
        extent = _shrink_jpeg(image, oversize * image_size) if oversize else None
        image.load()
        turn = turn_of(image)
        rgb, picture = turn_upright(to_rgb(image), extent or image.size, turn)
    box, size = RESIZE_MODES[resize_mode](picture, image_size)
    return pad_to_square(np.array(rgb.resize(size, Image.Resampling.BICUBIC, box)), image_size)


def _shrink_jpeg(image: ImageFile, side: int) -> tuple[float, float] | None:
    """Have a JPEG file decoded at a fraction of its size, with no side shorter than `side`.

    Returns the picture's width and height at that scale; None if the file is decoded in full.
    """
    done = image.draft(None, (side, side))
    return done and done[1][2:]
