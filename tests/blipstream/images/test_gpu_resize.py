# SPDX-License-Identifier: Apache-2.0
"""torch resizes as PIL does, bit for bit, whichever axis PIL resizes first. Exact sums are equal on every device."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blipstream.images import gpu_resize
from blipstream.images.gpu_resize import HALF_BITS, MAX_TAPS, PRECISION, Axis, can_resize, resize, taps
from blipstream.images.shapes import Box, Size
from tests.conftest import DEVICES
from tests.support.image_files import noise


def assert_equals_pil(image: Image.Image, size: Size, box: Box | None = None, device: str = "cpu") -> None:
    pixels = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)
    resized = resize(pixels, size, box or (0, 0, *image.size)).permute(1, 2, 0).cpu()
    np.testing.assert_array_equal(resized, np.asarray(image.resize(size, Image.Resampling.BICUBIC, box)))


LENGTHS = st.integers(1, 200)
SIDES = st.integers(13, 100)  # smaller ones could need more than MAX_TAPS


@settings(max_examples=200)
@given(LENGTHS, LENGTHS, SIDES, SIDES, st.integers(0, 2**32))
def test_any_size(width: int, height: int, columns: int, rows: int, seed: int) -> None:
    assert_equals_pil(noise(width, height, seed), (columns, rows))


@settings(max_examples=200)
@given(LENGTHS, LENGTHS, SIDES, st.tuples(*[st.floats(0, 1)] * 4))
def test_any_box(width: int, height: int, side: int, corners: tuple[float, float, float, float]) -> None:
    left, right = sorted(round(corner * width, 2) for corner in corners[:2])
    top, bottom = sorted(round(corner * height, 2) for corner in corners[2:])
    if right - left > 0.1 and bottom - top > 0.1:
        assert_equals_pil(noise(width, height), (side, side), (left, top, right, bottom))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 900), (1000, 999)])
def test_photograph_sizes(size: Size, device: str) -> None:
    assert_equals_pil(noise(*size), (384, 384), device=device)
    assert_equals_pil(noise(*size), (384, 384), (3.5, 1.5, size[0] - 7.5, size[1] - 2.25), device)


def test_exact_at_the_limit() -> None:
    """White has the largest sums; the length is the largest that MAX_TAPS allows."""
    assert MAX_TAPS * 255 << HALF_BITS - 1 <= 1 << 24  # an f32 holds every whole number up to here
    side = 64
    box_of = {length: (0, 0, length, length) for length in range(1500, 0, -1)}
    length = next(n for n, box in box_of.items() if can_resize((n, n), (side, side), box))
    box = box_of[length]
    assert taps(Axis(length, 0, length, side)).weights.shape[1] == MAX_TAPS
    assert not can_resize((length + side, length), (side, side), (0, 0, length + side, length))
    assert not can_resize((length, length + side), (side, side), (0, 0, length, length + side))
    for low, high in [(255, 255), (0, 255), (254, 255)]:
        samples = np.random.default_rng(0).choice([low, high], (length, length, 3))
        assert_equals_pil(Image.fromarray(samples.astype(np.uint8)), (side, side), box)


def test_filters_are_small_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter has room for its taps, not for all samples; those used last stay while there is room."""
    bound = 2**20
    monkeypatch.setattr(gpu_resize, "CACHE_BYTES", bound)
    monkeypatch.setattr(gpu_resize, "_filters", OrderedDict())
    axes = [Axis(length, 0, length, 384) for length in (5000, 640, *range(200, 600, 10))]

    def find(axis: Axis) -> Any:
        return gpu_resize._filter(axis, torch.device("cpu"))

    large, often = axes[:2]
    assert find(large)[2].nbytes < bound  # a matrix with a row for each sample would have 15 times as much
    kept = find(often)
    for axis in axes[2:]:
        find(axis)
        assert find(often) is kept
        tensors = [each for found in gpu_resize._filters.values() for each in found if isinstance(each, torch.Tensor)]
        assert sum(tensor.nbytes for tensor in tensors) <= bound
    lengths = [axis.length for axis, _ in gpu_resize._filters]
    assert large.length not in lengths
    assert lengths[-2:] == [axes[-1].length, often.length]


@settings(max_examples=100)
@given(st.integers(1, 5000), st.integers(1, 500))
def test_weights_sum_to_one(length: int, size: int) -> None:
    found = taps(Axis(length, 0, length, size))
    used = found.weights.shape[1]
    assert np.abs(found.weights.sum(axis=1) - (1 << PRECISION)).max() <= used  # each is rounded
    assert found.first.min() == 0
    beyond = found.first[:, None] + np.arange(used) >= length
    assert not found.weights[beyond].any()
