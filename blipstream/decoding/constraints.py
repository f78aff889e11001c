# SPDX-License-Identifier: Apache-2.0
"""Constraints on the next token, which hold for every strategy."""

import torch
from torch import Tensor

from blipstream.decoding.features import Features
from blipstream.decoding.history import History
from blipstream.decoding.slots import OptionColumns

INFINITY = float("inf")


def constrain(scores: Tensor, history: History, options: OptionColumns, end_token_id: int, features: Features) -> None:
    """Change the scores of what may come next, f32 [S, W, V], in place.

    As RepetitionPenaltyLogitsProcessor, NoRepeatNGramLogitsProcessor and MinNewTokensLengthLogitsProcessor of
    transformers do, in its order.
    """
    ids = history.ids
    if features.repetition_penalty:
        penalty = options["repetition_penalty"][:, None, None].float()
        chosen = scores.gather(2, ids)
        scores.scatter_(2, ids, torch.where(chosen < 0, chosen * penalty, chosen / penalty))
    if features.ngrams:
        # the token at p would complete an n-gram that is there already, if the tokens before p equal the last ones
        size = options["no_repeat_ngram_size"][:, None, None]
        in_use = torch.arange(ids.shape[2], device=ids.device) < history.lengths[:, None, None]
        repeats = (size > 0) & in_use & (history.matches >= size - 1)
        scores.scatter_reduce_(2, ids, torch.where(repeats, -INFINITY, INFINITY).to(scores.dtype), "amin")
    if features.min_tokens:
        too_early = history.generated < options["min_tokens"]
        scores[:, :, end_token_id].masked_fill_(too_early[:, None], -INFINITY)
