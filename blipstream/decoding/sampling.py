# SPDX-License-Identifier: Apache-2.0
"""Sampling: the distribution to draw from, and the draw."""

import torch
from torch import Tensor

from blipstream.options import DecodingOptions


def filter_distribution(
    scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, *, some: bool, fixed_shapes: bool
) -> Tensor:
    """The distributions to draw from, f32 [R, V]: temperature, then the k likeliest tokens, then the nucleus.

    The three options are [R, 1]. top_k 0 and top_p 1 filter nothing; `some`: whether any row is filtered. Without
    `fixed_shapes`, only those rows are sorted. As TemperatureLogitsWarper, TopKLogitsWarper and TopPLogitsWarper of
    transformers, in its order; the nucleus is that of Holtzman et al., arXiv:1904.09751.
    """
    scores = scores / temperature.float()
    if some and fixed_shapes:
        scores = _filtered(scores, top_k, top_p)
    elif some:
        rows = ((top_k > 0) | (top_p < 1))[:, 0]
        scores[rows] = _filtered(scores[rows], top_k[rows], top_p[rows])
    return scores.softmax(-1)


def _filtered(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    ascending, order = scores.sort(-1)
    last = scores.shape[-1] - 1
    threshold = ascending.gather(-1, (last + 1 - top_k.long()).clamp(0, last))
    ascending = ascending.masked_fill((ascending < threshold) & (top_k > 0), -float("inf"))
    outside = (ascending.softmax(-1).cumsum(-1) <= (1 - top_p).float()) & (top_p < 1)
    outside[:, -1] = False  # the likeliest token always stays
    ascending = ascending.masked_fill(outside, -float("inf"))
    return torch.empty_like(scores).scatter(-1, order, ascending)


def uniforms(options: DecodingOptions) -> Tensor:
    """The random numbers that decide a request's draws: in [0, 1), f32 [num_captions, max_tokens], from its seed."""
    generator = torch.Generator().manual_seed(options.seed)
    # token by token: a smaller max_tokens leaves the remaining numbers as they are
    return torch.rand(options.max_tokens, options.num_captions, generator=generator).T


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token a row, int64 [R], from probabilities, f32 [R, V]: their sums, inverted at uniform, f32 [R]."""
    sums = probabilities.double().cumsum(-1)  # in f32 the tail of a large vocabulary would be lost
    drawn = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=sums.shape[-1] - 1)  # where the probabilities are not numbers
