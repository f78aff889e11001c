# SPDX-License-Identifier: Apache-2.0
"""PIL's bicubic resize in torch, bit for bit.

PIL resizes 8-bit images in two passes, one an axis. Each is a fixed-point sum, rounded to 8 bits. Here each pass is a
product in f32 of windows of the image with parts of the filter, which is exact as long as no sum of whole numbers needs
more than 24 bits.

Source: Pillow's src/libImaging/Resample.c, version 13.
"""

from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from blipstream.images.shapes import Box, Size

PRECISION = 22  # fractional bits of a weight
HALF_BITS = PRECISION // 2
SUPPORT = 2.0  # half the cubic's width, in output pixels
MAX_TAPS = 64  # input samples an output sample: 64 products of 8 bits and half a weight's bits make a sum of 24 bits
WINDOW = 16  # output samples of one window, roughly
CACHE_BYTES = 2**25  # of the filters used last. For 384 samples out of 640 a filter has 0.1 MB, out of 4,000 0.7 MB


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
    return all(_num_taps(axis) <= MAX_TAPS for axis in _axes(image_size, size, box))


def _axes(image_size: Size, size: Size, box: Box) -> tuple[Axis, Axis]:
    left, top, right, bottom = box
    return Axis(image_size[0], left, right, size[0]), Axis(image_size[1], top, bottom, size[1])


def _is_height_first(image_size: Size, size: Size) -> bool:
    """Whether PIL 13 resizes an image's height before its width. It rounds in between, so the order matters."""
    (width, height), (target_width, target_height) = image_size, size
    return height > target_height and height - target_height > 2 * (width - target_width)


def taps(axis: Axis) -> Taps:
    """PIL's fixed-point weights of its bicubic filter."""
    centers, width = _centers(axis)
    first, count = _reach(axis)
    offsets = np.arange(count.max())
    weights = _cubic((offsets + first[:, None] - centers[:, None] + 0.5) * (1 / width))
    weights[offsets >= count[:, None]] = 0
    weights /= weights.cumsum(axis=1)[:, -1:]  # in order, as PIL sums them
    weights *= 1 << PRECISION
    return Taps(first, np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32))


@lru_cache(maxsize=1024)
def _num_taps(axis: Axis) -> int:
    """The most input samples of an output sample."""
    return int(_reach(axis)[1].max())


def _reach(axis: Axis) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first input sample of each output sample, and how many there are."""
    centers, width = _centers(axis)
    first = np.maximum((centers - SUPPORT * width + 0.5).astype(np.int64), 0)
    return first, np.minimum((centers + SUPPORT * width + 0.5).astype(np.int64), axis.length) - first


def _centers(axis: Axis) -> tuple[npt.NDArray[np.float64], float]:
    """Where each output sample lies on the input's axis, and its width there, at least 1."""
    start, stop = np.float32(axis.start), np.float32(axis.stop)  # PIL stores boxes in f32
    scale = float(stop - start) / axis.size
    return float(start) + (np.arange(axis.size) + 0.5) * scale, max(scale, 1.0)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -1/2 (R. Keys, 1981)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < SUPPORT, far, 0.0))


class _Filter(NamedTuple):
    """How to resize an axis: the sums of each window of its samples, and which of them to take."""

    left: int  # where the first window starts
    step: int  # from the start of a window to that of the next one; they overlap
    weights: Tensor  # f32 [windows, samples, 2 x sums]: first the upper bits of all weights, then the lower bits
    places: Tensor  # int64 [size], where each output sample is among all windows' sums


def _across(pixels: Tensor, axis: Axis) -> Tensor:
    """Resize the last axis: uint8 [3, H, W] -> [3, H, size].

    The weights' upper and lower bits are summed apart, so that both sums are exact in f32.
    """
    left, step, weights, places = _filter(axis, pixels.device)
    count, samples, _ = weights.shape
    length = (count - 1) * step + samples
    lines = pixels[..., left : left + length].flatten(0, 1)  # [3 H, W]
    lines = F.pad(lines, (0, length - lines.shape[1]))  # the last window may reach beyond, with weights of zero
    windows = lines.unfold(1, samples, step).transpose(0, 1).float()  # [count, 3 H, samples]
    high, low = (windows @ weights).int().chunk(2, dim=-1)
    rounded = ((high << HALF_BITS) + low + (1 << PRECISION - 1)) >> PRECISION
    sums = rounded.clamp(0, 255).byte().transpose(0, 1).flatten(1)  # [3 H, count x sums]
    return sums.index_select(1, places).view(*pixels.shape[:2], axis.size)


_filters: OrderedDict[tuple[Axis, torch.device], _Filter] = OrderedDict()  # the one used last is the last


def _filter(axis: Axis, device: torch.device) -> _Filter:
    """An axis's filter, kept for the next image of this size."""
    key = axis, device
    if found := _filters.get(key):
        _filters.move_to_end(key)
        return found
    found = _filters[key] = _make_filter(axis, device)
    while sum(each.weights.nbytes + each.places.nbytes for each in _filters.values()) > CACHE_BYTES:
        _filters.popitem(last=False)
    return found


def _make_filter(axis: Axis, device: torch.device) -> _Filter:
    first, weights = taps(axis)
    left, num_taps = int(first[0]), weights.shape[1]
    step = max(1, round(WINDOW * (axis.stop - axis.start) / axis.size))
    window, offset = np.divmod(first - left, step)  # of each output sample: its window, and where in it
    column = np.arange(axis.size) - np.searchsorted(window, window)  # its place among the window's sums
    high = (weights + (1 << HALF_BITS - 1)) >> HALF_BITS
    low = weights - (high << HALF_BITS)  # signed
    sums = int(column.max()) + 1
    matrix = np.zeros((window[-1] + 1, step - 1 + num_taps, 2, sums), np.float32)
    samples = offset[:, None] + np.arange(num_taps)
    for half, bits in enumerate((high, low)):
        matrix[window[:, None], samples, half, column[:, None]] = bits
    places = torch.from_numpy(window * sums + column)
    return _Filter(left, step, torch.from_numpy(matrix).flatten(2).to(device), places.to(device))
