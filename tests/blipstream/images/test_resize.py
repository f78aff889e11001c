# SPDX-License-Identifier: Apache-2.0
"""Each resize mode shows the part of the picture that it promises, where it promises."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.errors import InvalidInput
from blipstream.images.pixels import load_pixels
from blipstream.images.resize import LETTERBOX_COLOR, RESIZE_MODES
from tests.support.image_files import encode, ignore_pil_warnings
from tests.support.photographs import ASTRONAUT, CHINA, SMALL
from tests.support.reference_pixels import SIDE, reference_pixels

pytestmark = ignore_pil_warnings


@pytest.mark.parametrize("mode", ["", "crop", "Stretch", "x" * 1000])
def test_unknown_resize_mode_is_refused(mode: str) -> None:
    with pytest.raises(InvalidInput, match=r"^resize_mode must be one of stretch, center_crop, letterbox, not '"):
        load_pixels(encode(SMALL, "PNG"), SIDE, mode)


def test_center_crop_is_resize_then_crop() -> None:
    data = encode(CHINA.resize((640, 480)), "PNG")
    resized = CHINA.resize((640, 480)).resize((512, 384), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((64, 0, 448, 384)))
    np.testing.assert_array_equal(load_pixels(data, 384, "center_crop"), expected)


@pytest.mark.parametrize("size", [(90, 30), (30, 90)])
def test_center_crop_keeps_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    image = Image.new("RGB", size, "red")
    image.paste("blue", ((width - 30) // 2, (height - 30) // 2, (width + 30) // 2, (height + 30) // 2))
    pixels = load_pixels(encode(image, "PNG"), 60, "center_crop")
    assert (pixels[5:-5, 5:-5] == (0, 0, 255)).all()


@pytest.mark.parametrize(("size", "inside"), [((90, 30), np.s_[20:40, :]), ((30, 90), np.s_[:, 20:40])])
def test_letterbox_pads_evenly(size: tuple[int, int], inside: tuple[slice, slice]) -> None:
    pixels = load_pixels(encode(Image.new("RGB", size, "blue"), "PNG"), 60, "letterbox")
    expected = np.full((60, 60, 3), LETTERBOX_COLOR, np.uint8)
    expected[inside] = (0, 0, 255)
    np.testing.assert_array_equal(pixels, expected)


def test_letterbox_resizes_like_the_other_modes() -> None:
    pixels = load_pixels(encode(CHINA.resize((640, 480)), "PNG"), 384, "letterbox")
    expected = CHINA.resize((640, 480)).resize((384, 288), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels[48:336], np.asarray(expected))


def test_letterbox_color_is_zero_once_normalized() -> None:
    mean, std = np.array(BlipImageProcessorPil.image_mean), np.array(BlipImageProcessorPil.image_std)
    assert np.abs((np.array(LETTERBOX_COLOR) / 255 - mean) / std).max() < 0.01  # half a step is 0.007


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_every_mode_treats_squares_alike(mode: str) -> None:
    np.testing.assert_array_equal(load_pixels(encode(ASTRONAUT, "PNG"), SIDE, mode), reference_pixels(ASTRONAUT))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1), (1, 1)])
def test_extreme_shapes(mode: str, size: tuple[int, int]) -> None:
    pixels = load_pixels(encode(Image.new("RGB", size, "red"), "PNG"), SIDE, mode)
    red = (pixels == (255, 0, 0)).all(axis=-1)
    assert red.sum() == (SIDE if mode == "letterbox" and size != (1, 1) else SIDE * SIDE)
