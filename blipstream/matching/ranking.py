# SPDX-License-Identifier: Apache-2.0
"""Captions in the order in which they match their image, without those that match it too little."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from blipstream.errors import InvalidInput
from blipstream.matching.heads import Floats
from blipstream.options import RerankOptions

Array = npt.NDArray[Any]


class Ranking(NamedTuple):
    """Places of candidates, both best first."""

    kept: list[int]
    dropped: list[int]


def rank(logits: Floats, matches: Floats, options: RerankOptions) -> Ranking:
    """The order of candidates by `logits` [C]; equal ones keep theirs. Those of -inf are dropped, whatever is asked."""
    order = np.argsort(-logits, kind="stable")
    fits = np.isfinite(logits[order]) & (matches[order] >= options.min_match)
    return Ranking(order[fits][: options.num_captions].tolist(), order[~fits].tolist())


@dataclass(frozen=True)
class Candidates:
    """The captions of B images among which the best are chosen: K each, as the decoder gives them.

    Raises InvalidInput if the shapes do not fit each other.
    """

    caption: Array  # BYTES [B, K]
    score: Array  # [B, K]
    num_tokens: Array  # [B, K]
    token_scores: Array  # [B, K, T]
    options: Sequence[RerankOptions]  # of each image
    places: list[list[int]] = field(init=False)  # of each image's captions, without those that equal an earlier one

    def __post_init__(self) -> None:
        shapes = {each.shape[:2] for each in (self.caption, self.score, self.num_tokens, self.token_scores)}
        if len(shapes) > 1:
            raise InvalidInput(
                "score, num_tokens and token_scores must have a value for each text, and have "
                f"{' and '.join(str(list(shape)) for shape in sorted(shapes))}: send the decoder's outputs as they are"
            )
        firsts = [{text: place for place, text in reversed([*enumerate(row)])} for row in self.caption]
        object.__setattr__(self, "places", [sorted(first.values()) for first in firsts])

    @property
    def texts(self) -> list[list[bytes]]:
        """What is to be read for each image: its captions, each once."""
        return [row[places].tolist() for row, places in zip(self.caption, self.places, strict=True)]

    def ranked(self, logits: Sequence[Floats], matches: Sequence[Floats]) -> dict[str, Array]:
        """The outputs, given the scores of `texts`, [C] for each image.

        Shapes are those of the candidates, with the most captions that an image keeps for K, and D for those that it
        drops. Where an image has fewer, empty ones with zeros follow.
        """
        rankings = [rank(*each) for each in zip(logits, matches, self.options, strict=True)]
        kept, dropped = ([ranking[part] for ranking in rankings] for part in (0, 1))

        def own(tensor: Array, chosen: list[list[int]] = kept) -> Array:
            return _chosen(tensor, [[each[i] for i in row] for each, row in zip(self.places, chosen, strict=True)])

        num_tokens = own(self.num_tokens)
        return {
            "caption": own(self.caption),
            "score": own(self.score),
            "num_tokens": num_tokens,
            "token_scores": own(self.token_scores)[:, :, : num_tokens.max(initial=0)],
            "match": _chosen(matches, kept),
            "logit": _chosen(logits, kept),
            "dropped": own(self.caption, dropped),
            "dropped_match": _chosen(matches, dropped),
        }


def _chosen(rows: Array | Sequence[Array], chosen: list[list[int]]) -> Array:
    """Of each row, what lies at the chosen places; then zeros, or empty BYTES, up to the same number."""
    most, tail = max(map(len, chosen)), rows[0].shape[1:]
    zero = b"" if rows[0].dtype == np.object_ else 0
    result = np.full((len(chosen), most, *tail), zero, rows[0].dtype)
    for target, row, places in zip(result, rows, chosen, strict=True):
        target[: len(places)] = row[places]
    return result
