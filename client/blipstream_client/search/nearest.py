# SPDX-License-Identifier: Apache-2.0
"""Exact search: every embedding is multiplied with the query's."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._matches import Embedding
from blipstream_client._text import quoted
from blipstream_client.search.table import Block

LONGEST = 1.01  # of a product of two embeddings, which have length 1
ROUNDING = 1e-3  # by which the similarities of the same image may differ


@dataclass(frozen=True)
class Hit:
    """An image that is like the query."""

    name: str
    hash: str  # SHA-256 of its bytes
    similarity: float  # the cosine of both embeddings
    copies: int = 0  # further rows with the same bytes, under other names
    match: float | None = None  # the probability that the query's text matches it. None if it was not asked for
    logit: float | None = None  # its log-odds, without the calibration
    error: str | None = None  # why it could not be matched


def nearest(blocks: Iterable[Block], query: Embedding, k: int) -> list[Hit]:
    """The k images with the highest similarity, best first. Of equal ones, the first in the table comes first.

    Images with the same bytes are one hit. Raises InvalidRequest for embeddings that are not of length 1.
    """
    best: list[Hit] = []
    for block in blocks:
        similarities = block.embeddings @ query
        wrong = np.flatnonzero(~(abs(similarities) <= LONGEST))  # NaN is no number's equal
        if wrong.size:
            raise InvalidRequest(
                f"The embedding of {quoted(block.names[int(wrong[0])].as_py())} is damaged: embed the images again"
            )
        lowest = best[-1].similarity - ROUNDING if len(best) == k else -np.inf
        better = [
            Hit(block.names[row].as_py(), block.hashes[row].as_py(), float(similarities[row]))
            for row in np.flatnonzero(similarities >= lowest)
        ]
        if better:
            best = _once(sorted(best + better, key=lambda hit: -hit.similarity))[:k]
    return best


def _once(hits: Iterable[Hit]) -> list[Hit]:
    """The first hit of each image."""
    found: dict[str, Hit] = {}
    for hit in hits:
        image = hit.hash or hit.name
        first = found.get(image)
        found[image] = replace(first, copies=first.copies + hit.copies + 1) if first else hit
    return [*found.values()]
