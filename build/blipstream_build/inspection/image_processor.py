# SPDX-License-Identifier: Apache-2.0
"""Checks of an image processor: whether it prepares images as every BLIP's does, in the model's size."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.errors import ArtifactError
from blipstream_build.inspection import BASE

EXPECTED = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": Image.Resampling.BICUBIC,
}


def check_image_processor(
    processor: BlipImageProcessorPil, settings: dict[str, Any], image_size: int, file: Path
) -> None:
    """Check an image processor, read from `file`, against a model's image size in pixels.

    `settings` are what the file itself says, without the defaults of transformers.
    """
    kind = settings.get("image_processor_type")
    if kind is not None and not str(kind).startswith("Blip"):
        raise ArtifactError(f"{file} is of a {str(kind)[:40]}: expected a BlipImageProcessor, as in {BASE}")
    sides = (processor.size.get("height"), processor.size.get("width"))
    if sides != (image_size, image_size):
        found = f"{sides[1]} x {sides[0]} pixels" if all(sides) else str(dict(processor.size))
        raise ArtifactError(
            f"{file} resizes images to {found}, and the model takes {image_size} x {image_size}: "
            f'write "size": {{"height": {image_size}, "width": {image_size}}} there if that is what it was trained with'
        )
    for key in ("image_mean", "image_std"):
        values = getattr(processor, key)
        if settings.get(key) is None:  # transformers fills in BLIP's values
            raise ArtifactError(
                f"{file} has no {key}: expected three numbers between 0 and 1, for red, green and blue; "
                f'write "{key}": {list(values)} there if the model was trained with BLIP\'s'
            )
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(_is_share(each, key) for each in values):
            raise ArtifactError(
                f"{file} has {key} {str(values)[:40]}: expected three numbers between 0 and 1, for red, green and blue"
            )
    for key, value in EXPECTED.items():
        found = getattr(processor, key)
        if found != value:
            raise ArtifactError(
                f"{file} has {key} {str(found)[:40]}: expected {json.dumps(value)}, as all of BLIP's have"
            )
    if not abs(255 * processor.rescale_factor - 1) < 1e-6:  # written so that NaN fails, too
        raise ArtifactError(
            f"{file} has rescale_factor {processor.rescale_factor}: expected 1/255, as all of BLIP's have"
        )


def _is_share(value: object, key: str) -> bool:
    """Whether a value is in 0..1. A standard deviation must not be 0."""
    return isinstance(value, int | float) and 0 <= value <= 1 and (value > 0 or key == "image_mean")
