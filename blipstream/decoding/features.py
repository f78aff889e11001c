# SPDX-License-Identifier: Apache-2.0
"""Which features requests use, so that a step of a batch skips the others."""

from typing import NamedTuple, Self

from blipstream.options import DecodingOptions


class Features(NamedTuple):
    """Whether each feature is used, by a request or by any of a batch."""

    repetition_penalty: bool
    ngrams: bool  # no_repeat_ngram_size
    min_tokens: bool
    filters: bool  # top_k or top_p

    @classmethod
    def of(cls, options: DecodingOptions) -> Self:
        """The features that a request with these options uses."""
        return cls(
            repetition_penalty=options.repetition_penalty != 1,
            ngrams=options.no_repeat_ngram_size > 0,
            min_tokens=options.min_tokens > 0,
            filters=options.top_k > 0 or options.top_p < 1,
        )

    @classmethod
    def every(cls, constraints: bool, filters: bool) -> Self:
        """All constraints or none, and filters or none: few combinations, so that few steps become graphs."""
        return cls(*[constraints] * len(cls._fields))._replace(filters=filters)

    @property
    def constraints(self) -> bool:
        """Whether any constraint is used."""
        return any(self._replace(filters=False))
