# SPDX-License-Identifier: Apache-2.0
"""PIL's bicubic resize in torch, bit for bit.

PIL resizes 8-bit images in two passes, one an axis. Each is a fixed-point sum, rounded to 8 bits. Here each pass is one
matrix product in f32, which is exact as long as no sum of whole numbers needs more than 24 bits.

Source: Pillow's src/libImaging/Resample.c, version 13.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blipstream.images.shapes import Box, Size

PRECISION = 22  # fractional bits of a weight
HALF_BITS = PRECISION // 2
SUPPORT = 2.0  # half the cubic's width, in output pixels
MAX_TAPS = 64  # input samples an output sample: 64 products of 8 bits and half a weight's bits make a sum of 24 bits


class Axis(NamedTuple):
    """How to resize one axis: the part from `start` to `stop` of `length` samples becomes `size` samples."""

    length: int
    start: float
    stop: float
    size: int


class Taps(NamedTuple):
    """The input samples that each output sample of an axis is the weighted sum of."""

    first: npt.NDArray[np.int64]  # [size], the first input sample of each
    weights: npt.NDArray[np.int32]  # [size, taps], fixed-point; zeros at the end where there are fewer taps


def resize(pixels: Tensor, size: Size, box: Box) -> Tensor:
    """As PIL's Image.resize with this `size` and `box`: uint8 [3, H, W] -> [3, size[1], size[0]]."""
    assert pixels.dtype == torch.uint8
    channels, height, width = pixels.shape
    assert channels == 3
    columns, rows = _axes((width, height), size, box)
    if _is_height_first((width, height), size):
        return _across(_across(pixels.mT, rows).mT, columns)
    return _across(_across(pixels, columns).mT, rows).mT


def can_resize(image_size: Size, size: Size, box: Box) -> bool:
    """Whether `resize` is exact for an image of this size."""
    return all(taps(axis).weights.shape[1] <= MAX_TAPS for axis in _axes(image_size, size, box))


def _axes(image_size: Size, size: Size, box: Box) -> tuple[Axis, Axis]:
    left, top, right, bottom = box
    return Axis(image_size[0], left, right, size[0]), Axis(image_size[1], top, bottom, size[1])


def _is_height_first(image_size: Size, size: Size) -> bool:
    """Whether PIL 13 resizes an image's height before its width. It rounds in between, so the order matters."""
    (width, height), (target_width, target_height) = image_size, size
    return height > target_height and height - target_height > 2 * (width - target_width)


@lru_cache(maxsize=64)
def taps(axis: Axis) -> Taps:
    """PIL's fixed-point weights of its bicubic filter."""
    start, stop = np.float32(axis.start), np.float32(axis.stop)  # PIL stores boxes in f32
    scale = float(stop - start) / axis.size
    width = max(scale, 1.0)
    centers = float(start) + (np.arange(axis.size) + 0.5) * scale
    first = np.maximum((centers - SUPPORT * width + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + SUPPORT * width + 0.5).astype(np.int64), axis.length) - first
    offsets = np.arange(count.max())
    weights = _cubic((offsets + first[:, None] - centers[:, None] + 0.5) * (1 / width))
    weights[offsets >= count[:, None]] = 0
    weights /= weights.cumsum(axis=1)[:, -1:]  # in order, as PIL sums them
    weights *= 1 << PRECISION
    return Taps(first, np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32))


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -1/2 (R. Keys, 1981)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < SUPPORT, far, 0.0))


def _across(pixels: Tensor, axis: Axis) -> Tensor:
    """Resize the last axis: uint8 [3, H, W] -> [3, H, size].

    The weights' upper and lower bits are summed apart, so that both sums are exact in f32.
    """
    left, matrix = _matrix(axis, pixels.device)
    sums = (pixels[..., left : left + len(matrix)].float() @ matrix).int()
    high, low = sums[..., : axis.size], sums[..., axis.size :]
    rounded: Tensor = ((high << HALF_BITS) + low + (1 << PRECISION - 1)) >> PRECISION
    return rounded.clamp(0, 255).byte()


@lru_cache(maxsize=64)
def _matrix(axis: Axis, device: torch.device) -> tuple[int, Tensor]:
    """The first input sample with a weight, and the weights from there on.

    They are f32 [samples, 2 size]: first the upper bits of all weights, then the lower bits.
    """
    found = taps(axis)
    left = int(found.first.min())
    samples = int(min(found.first.max() + found.weights.shape[1], axis.length)) - left
    weights = torch.from_numpy(found.weights).to(device)
    high = (weights + (1 << HALF_BITS - 1)) >> HALF_BITS
    low = weights - (high << HALF_BITS)  # signed
    places = torch.from_numpy(found.first - left).to(device)[:, None] + torch.arange(weights.shape[1], device=device)
    matrix = torch.zeros(2 * axis.size, samples, device=device)
    # taps beyond the last sample have zero weight, so they may be added anywhere
    matrix.scatter_add_(1, places.clamp(max=samples - 1).repeat(2, 1), torch.cat([high, low]).float())
    return left, matrix.T
