# SPDX-License-Identifier: Apache-2.0
"""PIL's bicubic resize in torch, bit for bit.

PIL resizes 8-bit images in two passes of fixed-point sums and rounds to 8 bits after each. On a GPU each pass is one
matrix product in f32, which is exact as long as no sum of whole numbers outgrows its 24 bits.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blipstream.images.pixels import Box

PRECISION = 22  # fractional bits of a weight
HALF_BITS = PRECISION // 2
SUPPORT = 2.0  # of the cubic, in output pixels
MAX_TAPS = 64  # of an axis: 64 values of 8 bits, weighed with halves of a weight, make 24 bits


class Axis(NamedTuple):
    """Resize the stretch from `start` to `stop` of an axis of `length` samples to `size`."""

    length: int
    start: float
    stop: float
    size: int


class Taps(NamedTuple):
    """Which input samples each output sample of an axis is the weighted sum of."""

    first: npt.NDArray[np.int64]  # [size]
    weights: npt.NDArray[np.int32]  # [size, taps], zero where there are fewer


def resize(pixels: Tensor, size: tuple[int, int], box: Box) -> Tensor:
    """uint8 [3, H, W] to [3, *size reversed], as Image.resize does with the same `size` and `box`."""
    height, width = pixels.shape[1:]
    columns, rows = _axes((width, height), size, box)
    if _is_height_first((width, height), size):
        return _across(_across(pixels.mT, rows).mT, columns)
    return _across(_across(pixels, columns).mT, rows).mT


def can_resize(image_size: tuple[int, int], size: tuple[int, int], box: Box) -> bool:
    """Whether `resize` is exact for an image of this size."""
    return all(taps(axis).weights.shape[1] <= MAX_TAPS for axis in _axes(image_size, size, box))


def _axes(image_size: tuple[int, int], size: tuple[int, int], box: Box) -> tuple[Axis, Axis]:
    left, top, right, bottom = box
    return Axis(image_size[0], left, right, size[0]), Axis(image_size[1], top, bottom, size[1])


def _is_height_first(image_size: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether PIL (13) resizes an image's height before its width; as it rounds in between, the order counts."""
    (width, height), (target_width, target_height) = image_size, size
    return height > target_height and height - target_height > 2 * (width - target_width)


@lru_cache(maxsize=64)
def taps(axis: Axis) -> Taps:
    """PIL's fixed-point weights for its bicubic filter."""
    start, stop = np.float32(axis.start), np.float32(axis.stop)  # as PIL takes a box
    scale = float(stop - start) / axis.size
    width = max(scale, 1.0)
    centers = float(start) + (np.arange(axis.size) + 0.5) * scale
    first = np.maximum((centers - SUPPORT * width + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + SUPPORT * width + 0.5).astype(np.int64), axis.length) - first
    offsets = np.arange(count.max())
    weights = _cubic((offsets + first[:, None] - centers[:, None] + 0.5) * (1 / width))
    weights[offsets >= count[:, None]] = 0
    weights /= weights.cumsum(axis=1)[:, -1:]  # one after the other, as PIL sums them
    weights *= 1 << PRECISION
    return Taps(first, np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32))


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < SUPPORT, far, 0.0))


def _across(pixels: Tensor, axis: Axis) -> Tensor:
    """uint8 [3, H, W] -> [3, H, size]. Two exact sums in f32, of the weights' upper and lower bits, make one."""
    left, matrix = _matrix(axis, pixels.device)
    sums = (pixels[..., left : left + len(matrix)].float() @ matrix).int()
    high, low = sums[..., : axis.size], sums[..., axis.size :]
    rounded: Tensor = ((high << HALF_BITS) + low + (1 << PRECISION - 1)) >> PRECISION
    return rounded.clamp(0, 255).byte()


@lru_cache(maxsize=64)
def _matrix(axis: Axis, device: torch.device) -> tuple[int, Tensor]:
    """The first sample that counts, and the weights from there on, f32 [samples, 2 x size]: upper, then lower bits."""
    found = taps(axis)
    left = int(found.first.min())
    samples = int(min(found.first.max() + found.weights.shape[1], axis.length)) - left
    weights = torch.from_numpy(found.weights).to(device)
    high = (weights + (1 << HALF_BITS - 1)) >> HALF_BITS
    low = weights - (high << HALF_BITS)  # signed
    places = torch.from_numpy(found.first - left).to(device)[:, None] + torch.arange(weights.shape[1], device=device)
    matrix = torch.zeros(2 * axis.size, samples, device=device)
    # taps beyond the last sample weigh nothing, wherever they are added
    matrix.scatter_add_(1, places.clamp(max=samples - 1).repeat(2, 1), torch.cat([high, low]).float())
    return left, matrix.T
