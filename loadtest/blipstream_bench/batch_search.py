# SPDX-License-Identifier: Apache-2.0
"""The search for the best batch size while all systems take turns, so that a busy machine misleads it least."""

import statistics
from collections.abc import Hashable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


class BatchSearch:
    """Finds the batch size with the most images a second of one system with one strategy, round by round."""

    def __init__(self, candidates: Sequence[int]) -> None:
        """From the batch sizes to try, in ascending order."""
        self._rates: dict[int, list[float]] = {batch: [] for batch in candidates}

    @property
    def due(self) -> list[int]:
        """The batch sizes to measure in the next round: all, and from then on the best so far and those beside it."""
        candidates = list(self._rates)
        if not all(self._rates.values()):
            return candidates
        place = candidates.index(self.best)
        return candidates[max(place - 1, 0) : place + 2]

    def add(self, batch: int, rate: float) -> None:
        """Note images a second, measured when the batch size was warm."""
        self._rates[batch].append(rate)

    @property
    def best(self) -> int:
        """The batch size with the highest median. All must have been measured."""
        return max(self._rates, key=lambda batch: statistics.median(self._rates[batch]))

    @property
    def rate(self) -> float:
        """The median of the best batch size, images a second."""
        return statistics.median(self._rates[self.best])

    @property
    def with_more_beams(self) -> list[int]:
        """The batch sizes to try with more beams, so with more rows for each image: a larger one will not do better."""
        candidates = list(self._rates)
        place = candidates.index(self.best)
        return candidates[max(place - 1, 0) : place + 1]


def turns(due: Mapping[T, Sequence[int]], number: int) -> list[tuple[T, int]]:
    """What to measure in round `number`, in this order: systems with one batch size each.

    Those of different systems alternate, and every second round runs backwards: what a machine gains or loses from the
    first to the last is the same for all systems after two rounds.
    """
    columns = zip_longest(*([(system, batch) for batch in batches] for system, batches in due.items()))
    order = [turn for column in columns for turn in column if turn is not None]
    return order[::-1] if number % 2 else order
