# SPDX-License-Identifier: Apache-2.0
"""Heatmaps of words, from the maps of tokens: N values each, for the patch [CLS] and the patches of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GRADIENT_SCALE = 256  # so that f16 does not lose small ones; a heatmap is scaled anyway


@dataclass(frozen=True)
class Explanation:
    """Where the model looked for each word of a text."""

    words: list[str]  # joined with spaces, they are the text; in Japanese and Chinese, without
    attention: npt.NDArray[np.float32]  # [W, P, P], P patches a side: how much each word has of each patch, 1 in all


def by_word(maps: Tensor, positions: Sequence[list[int]]) -> Tensor:
    """The mean of each word's tokens, given their positions: [T, N] -> [W, N]."""
    found = [maps[each].mean(0) if each else torch.zeros_like(maps[0]) for each in positions]
    return torch.stack(found) if found else maps.new_zeros(0, maps.shape[1])


def explanation(words: list[str], maps: Tensor) -> Explanation:
    """From maps [W, N] of words. [CLS], which is no place in the image, is left out, and the rest adds up to 1."""
    patches = maps[:, 1:]
    patches = patches / patches.sum(1, keepdim=True).clamp(min=torch.finfo(patches.dtype).tiny)
    side = isqrt(patches.shape[1])
    return Explanation(words, patches.reshape(len(words), side, side).cpu().numpy())
