# SPDX-License-Identifier: Apache-2.0
"""Buffers that hold more than is in use, so that they seldom move."""

from collections.abc import Sequence

from torch import Tensor

LENGTH_BUCKET = 32  # tokens


def length_bucket(length: int) -> int:
    """A cache's length for rows of `length` tokens."""
    return -(-length // LENGTH_BUCKET) * LENGTH_BUCKET


def resized(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """A buffer of another size with the same content in the corner that both have."""
    other = buffer.new_zeros(shape)  # zeros: what lies beyond a row's end is masked, yet must not be NaN
    corner = tuple(slice(min(sizes)) for sizes in zip(buffer.shape, shape, strict=True))
    other[corner] = buffer[corner]
    return other
