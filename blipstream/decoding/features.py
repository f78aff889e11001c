# SPDX-License-Identifier: Apache-2.0
"""Which features the requests of a batch use, so that a step skips the others."""

from collections.abc import Iterable
from typing import NamedTuple, Self

from blipstream.options import DecodingOptions


class Features(NamedTuple):
    """Whether any request of a batch uses each feature."""

    repetition_penalty: bool
    ngrams: bool  # no_repeat_ngram_size
    min_tokens: bool
    filters: bool  # top_k or top_p

    @classmethod
    def of(cls, options: Iterable[DecodingOptions]) -> Self:
        """The features that any of these options uses."""
        every = list(options)
        return cls(
            repetition_penalty=any(each.repetition_penalty != 1 for each in every),
            ngrams=any(each.no_repeat_ngram_size for each in every),
            min_tokens=any(each.min_tokens for each in every),
            filters=any(each.top_k or each.top_p < 1 for each in every),
        )

    @classmethod
    def every(cls, constraints: bool, filters: bool) -> Self:
        """All constraints or none, and filters or none: few combinations, so that few steps become graphs."""
        return cls(*[constraints] * len(cls._fields))._replace(filters=filters)

    @property
    def constraints(self) -> bool:
        """Whether any constraint is used."""
        return any(self._replace(filters=False))
