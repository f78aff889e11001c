# SPDX-License-Identifier: Apache-2.0
"""Photographs, and every way to encode one that is served."""

from typing import Any

from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from tests.support.image_files import with_alpha


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(photographs, name)())


CHINA, FLOWER = map(Image.fromarray, load_sample_images().images)  # 640 x 427
ASTRONAUT = photograph("astronaut")  # 512 x 512
SMALL = ASTRONAUT.crop((150, 20, 250, 80))  # 100 x 60

# The arguments of encode() for each kind of file.
ENCODINGS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "jpeg": (CHINA, "JPEG", {}),
    "jpeg progressive": (CHINA, "JPEG", {"progressive": True}),
    "jpeg 4:4:4": (CHINA, "JPEG", {"subsampling": 0, "quality": 95}),
    "jpeg grey": (CHINA.convert("L"), "JPEG", {}),
    "jpeg cmyk": (CHINA.convert("CMYK"), "JPEG", {}),
    "mpo": (CHINA, "MPO", {"save_all": True, "append_images": [FLOWER]}),
    "png": (CHINA, "PNG", {}),
    "png grey": (CHINA.convert("L"), "PNG", {}),
    "png 1 bit": (CHINA.convert("1"), "PNG", {}),
    "png palette": (CHINA.quantize(64), "PNG", {}),
    "png palette, one clear": (CHINA.quantize(64), "PNG", {"transparency": 3}),
    "png palette, many clear": (CHINA.quantize(64), "PNG", {"transparency": bytes(range(0, 256, 4))}),
    "png palette from alpha": (with_alpha(CHINA).quantize(64), "PNG", {}),
    "png alpha": (with_alpha(CHINA), "PNG", {}),
    "png grey alpha": (with_alpha(CHINA).convert("LA"), "PNG", {}),
    "png clear color": (CHINA, "PNG", {"transparency": CHINA.getpixel((5, 5))}),
    "png clear grey": (CHINA.convert("L"), "PNG", {"transparency": 200}),
    "webp": (CHINA, "WEBP", {}),
    "webp lossless": (CHINA, "WEBP", {"lossless": True}),
    "webp alpha": (with_alpha(CHINA), "WEBP", {}),
    "bmp": (CHINA, "BMP", {}),
    "bmp grey": (CHINA.convert("L"), "BMP", {}),
    "bmp 1 bit": (CHINA.convert("1"), "BMP", {}),
    "bmp alpha": (with_alpha(CHINA), "BMP", {}),
    "gif": (CHINA, "GIF", {}),
    "gif clear": (CHINA.quantize(64), "GIF", {"transparency": 3}),
    "tiff": (CHINA, "TIFF", {}),
    "tiff lzw": (CHINA, "TIFF", {"compression": "tiff_lzw"}),
    "tiff jpeg": (CHINA, "TIFF", {"compression": "jpeg"}),
    "tiff fax": (CHINA.convert("1"), "TIFF", {"compression": "group4"}),
    "tiff palette": (CHINA.quantize(64), "TIFF", {}),
    "tiff cmyk": (CHINA.convert("CMYK"), "TIFF", {}),
    "tiff alpha": (with_alpha(CHINA), "TIFF", {}),
    "tiff ycbcr": (CHINA.convert("YCbCr"), "TIFF", {}),
}
