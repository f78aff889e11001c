# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's encoder gives transformers' image_embeds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blipstream.config import DType
from blipstream.errors import ArtifactError, InvalidInput
from blipstream.vision.openvino import OpenVINOEncoder
from tests.reference import Reference, relative_error
from tests.support.image_files import stack_pixels

SIDE = 192  # of the demo checkpoint's images


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-4), ("bf16", 1e-2)])
def test_equals_transformers(
    f32_artifacts: Path, reference: Reference, scene_images: list[Image.Image], dtype: DType, tolerance: float
) -> None:
    encoder = OpenVINOEncoder(f32_artifacts / "encoder/1/openvino", dtype=dtype)
    for start, stop in ((0, 1), (1, 9), (9, 26)):
        images = scene_images[start:stop]
        image_embeds = torch.from_numpy(encoder.encode(stack_pixels(images, SIDE)))
        assert relative_error(image_embeds, reference.embed(images)) < tolerance


def test_results_belong_to_the_caller(f32_artifacts: Path, scene_images: list[Image.Image]) -> None:
    """A later batch does not change an earlier result."""
    encoder = OpenVINOEncoder(f32_artifacts / "encoder/1/openvino")
    first = encoder.encode(stack_pixels(scene_images[:2], SIDE))
    kept = first.copy()
    encoder.encode(stack_pixels(scene_images[2:4], SIDE))
    np.testing.assert_array_equal(first, kept)


def test_pixels_of_another_size_are_refused(f32_artifacts: Path) -> None:
    encoder = OpenVINOEncoder(f32_artifacts / "encoder/1/openvino")
    with pytest.raises(InvalidInput, match=r"pixels must have shape \[192, 192, 3\], not \[384, 384, 3\]"):
        encoder.check(np.zeros((1, 384, 384, 3), np.uint8))


def test_missing_and_broken_artifacts(f32_artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no artifact in .*blipstream build"):
        OpenVINOEncoder(tmp_path)
    (tmp_path / "config.json").write_bytes((f32_artifacts / "encoder/1/openvino/config.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"encoder\.xml cannot be loaded: .*blipstream build"):
        OpenVINOEncoder(tmp_path)
