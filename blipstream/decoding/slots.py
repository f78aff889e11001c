# SPDX-License-Identifier: Apache-2.0
"""Tensors that hold a slot for each request, and that seldom move.

Shapes in this package: S slots, W rows in each, H positions in the history of a row, V tokens in the vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blipstream.options import DecodingOptions

LENGTH_BUCKET = 32  # tokens


def length_bucket(length: int) -> int:
    """The capacity for rows of `length` tokens."""
    return -(-length // LENGTH_BUCKET) * LENGTH_BUCKET


def to_device(array: npt.NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The same on the device. The host does not wait for the copy, nor for what a GPU has to do before it."""
    tensor = torch.as_tensor(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def resized(buffer: Tensor, shape: Sequence[int], fill: int = 0) -> Tensor:
    """A buffer of another shape with the same content in the corner that both have, and `fill` elsewhere."""
    other = buffer.new_full(shape, fill) if fill else buffer.new_zeros(shape)  # zeros cost nothing until written
    corner = tuple(slice(min(sizes)) for sizes in zip(buffer.shape, shape, strict=True))
    other[corner] = buffer[corner]
    return other


@dataclass(eq=False)
class SlotTensors:
    """A record of tensors [S], [S, W] or [S, W, H]."""

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return list(vars(self).values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same record of other tensors."""
        record: Callable[..., Self] = type(self)
        return record(*map(function, vars(self).values()))

    def first(self, slots: int, positions: int) -> Self:
        """Views of the first slots and positions."""
        return self.map(lambda tensor: tensor[:slots, :, :positions] if tensor.dim() == 3 else tensor[:slots])

    def resized(self, slots: int, positions: int) -> Self:
        """A copy with that many slots and positions."""
        return self.map(lambda tensor: resized(tensor, (slots, *tensor.shape[1:2], positions)[: tensor.dim()]))

    def put(self, slots: Tensor, other: Self) -> None:
        """Overwrite the slots, int64 [n], with those of `other`, which may lie on another device."""
        for mine, new in zip(self.tensors(), other.tensors(), strict=True):
            mine[slots] = to_device(new, mine.device)

    def store(self, other: Self) -> None:
        """Overwrite these tensors, where they lie, with those of `other`."""
        for mine, new in zip(self.tensors(), other.tensors(), strict=True):
            if new is not mine:
                mine.copy_(new)


NUMBERS = tuple(field.name for field in fields(DecodingOptions) if isinstance(field.default, (int, float)))  # and bool
_numbers = attrgetter(*NUMBERS)


@dataclass(eq=False)
class OptionColumns(SlotTensors):
    """The options of each slot that are numbers."""

    values: Tensor  # f64 [S, len(NUMBERS)]

    @classmethod
    def of(cls, options: Sequence[DecodingOptions]) -> Self:
        """A slot for each."""
        rows = np.array([_numbers(each) for each in options], np.float64)
        return cls(torch.from_numpy(rows.reshape(-1, len(NUMBERS))))

    def __getitem__(self, name: str) -> Tensor:
        """An option of each slot, f64 [S]."""
        return self.values[:, NUMBERS.index(name)]
