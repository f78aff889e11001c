# SPDX-License-Identifier: Apache-2.0
"""Strategies read their rows' logits and say what comes next; they know no model."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from blipstream.options import DecodingOptions


@dataclass(frozen=True)
class Sequence:
    """A finished caption: the generated tokens, without the prompt, and their summed log-probability."""

    ids: list[int]
    score: float


class Strategy(Protocol):
    """Owned by one request; sees the logits of that request's rows only."""

    num_rows: int
    sequences: list[Sequence]  # best first; filled when `advance` returns None

    def advance(self, logits: Tensor) -> list[int] | None:
        """From logits, f32 [num_rows, V], the token that each row goes on with; None when all is said."""


class Greedy:
    """The most probable token, each time."""

    num_rows = 1

    def __init__(self, options: DecodingOptions, end_token_id: int) -> None:
        self.sequences: list[Sequence] = []
        self._options = options
        self._end_token_id = end_token_id
        self._ids: list[int] = []
        self._score = 0.0

    def advance(self, logits: Tensor) -> list[int] | None:
        """See Strategy. A token's log-probability is taken after the minimum length has spoken."""
        row = logits[0]
        if len(self._ids) < self._options.min_tokens:
            row[self._end_token_id] = -float("inf")
        token = int(row.argmax())
        self._score += float(row[token] - row.logsumexp(0))
        self._ids.append(token)
        if token == self._end_token_id or len(self._ids) == self._options.max_tokens:
            self.sequences = [Sequence(self._ids, self._score)]
            return None
        return [token]
