# SPDX-License-Identifier: Apache-2.0
"""The tokens of each row, from the prompt's first to the newest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from blipstream.decoding.request import Request
from blipstream.decoding.slots import SlotTensors


@dataclass(eq=False)
class History(SlotTensors):
    """All rows of a slot have equally many tokens."""

    ids: Tensor  # int64 [S, W, H]; behind the last token comes the prompt's first, which no constraint tells apart
    token_scores: Tensor  # f32 [S, W, H], log-probabilities; zeros for the prompt
    matches: Tensor  # int64 [S, W, H]; at p: how many tokens before p equal as many of the last ones
    lengths: Tensor  # int64 [S], tokens of each row
    prompt_lengths: Tensor  # int64 [S], how many of them are the prompt

    @classmethod
    def of(cls, requests: Sequence[Request], width: int, positions: int) -> Self:
        """A slot for each request, with its prompt in all rows."""

        ids, matches = np.zeros((2, len(requests), 1, positions), np.int64)
        for slot, request in enumerate(requests):
            prompt = request.prompt_ids
            ids[slot] = prompt[0]
            ids[slot, 0, : len(prompt)] = prompt
            if request.options.no_repeat_ngram_size:
                matches[slot, 0, : len(prompt)] = _suffix_matches(prompt)
        lengths = torch.tensor([len(request.prompt_ids) for request in requests], dtype=torch.int64)
        ids_of_rows, matches_of_rows = (torch.from_numpy(each.repeat(width, axis=1)) for each in (ids, matches))
        return cls(ids_of_rows, torch.zeros(ids_of_rows.shape), matches_of_rows, lengths, lengths.clone())

    @property
    def generated(self) -> Tensor:
        """Tokens of each row that are not the prompt's, int64 [S]."""
        return self.lengths - self.prompt_lengths

    def newest(self) -> Tensor:
        """The last token of each row, int64 [S, W]."""
        return self.ids.gather(2, self._positions(self.lengths - 1))[:, :, 0]

    def reorder(self, parents: Tensor, *, ngrams: bool) -> None:
        """Let row w of each slot s go on from what row parents[s, w] was; parents is int64 [S, W]."""
        slots = torch.arange(len(parents), device=parents.device)[:, None]
        for rows in (self.ids, self.token_scores, *([self.matches] if ngrams else [])):
            rows.copy_(rows[slots, parents])

    def append(self, tokens: Tensor, token_scores: Tensor, *, ngrams: bool) -> None:
        """Add a token to each row, both [S, W]. `ngrams`: whether anybody reads `matches`.

        The caller counts it in `lengths`, since free slots stay as they are.
        """
        if ngrams:
            equal = self.ids[:, :, :-1] == tokens[:, :, None]
            self.matches[:, :, 1:] = torch.where(equal, self.matches[:, :, :-1] + 1, 0)
        self.ids.scatter_(2, self._positions(self.lengths), tokens[:, :, None])
        self.token_scores.scatter_(2, self._positions(self.lengths), token_scores[:, :, None])

    def _positions(self, positions: Tensor) -> Tensor:
        """Positions [S] as an index [S, W, 1]."""
        return positions[:, None, None].expand(-1, self.ids.shape[1], 1)


def _suffix_matches(ids: list[int]) -> list[int]:
    matches = [0] * len(ids)
    for p in range(1, len(ids)):
        while matches[p] < p and ids[p - 1 - matches[p]] == ids[-1 - matches[p]]:
            matches[p] += 1
    return matches
