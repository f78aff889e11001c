# SPDX-License-Identifier: Apache-2.0
"""Captions, and how they are read from a model's outputs.

Outputs have a batch of one image: shape [1, K] for its K captions.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from blipstream_client._exceptions import BlipstreamError, ServerError
from blipstream_client._tensors import Tensors
from blipstream_client._text import excerpt, quoted


@dataclass(frozen=True)
class Dropped:
    """A caption that matches its image less than `min_match` asks for, or has no words. As text, it is its own."""

    text: str
    match: float  # the probability that it matches

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Caption:
    """A caption of one image. As text, it is the caption's own.

    With `rerank` or `min_match`, it may be empty: then `dropped` has all captions that were generated.
    """

    text: str
    score: float  # log-probability: the higher, the likelier
    num_tokens: int
    token_scores: tuple[float, ...] = field(default=(), repr=False)  # log-probability of each token
    alternatives: "tuple[Caption, ...]" = ()  # the next best captions, if num_captions asked for them
    finish_reason: str | None = None  # of a stream: "stop", or "length" if max_tokens ended it
    match: float | None = None  # the probability that it matches the image, if rerank or min_match asked for that
    logit: float | None = None  # its log-odds before calibration, by which captions are then ranked
    dropped: tuple[Dropped, ...] = ()  # captions that match too little, best first
    min_match: float | None = None  # as asked, if no caption has it

    @property
    def why_empty(self) -> str:
        """Why no caption is left, in one sentence, or "" if one is."""
        if not self.dropped or self.num_tokens:
            return ""
        best, count = self.dropped[0], len(self.dropped)
        of_all = "the only caption" if count == 1 else f"the best of {count} captions"
        # if nothing was to be dropped, the server has dropped what it cannot match at all
        if best.match == 0 and not (self.min_match and any(map(str.isalnum, best.text))):
            return f"No caption has words to match: {of_all} is {quoted(best.text)}"
        least = "" if self.min_match is None else f", and min_match is {self.min_match:g}"
        how = f"matches with {_shown(best.match)}{least}"
        return f"No caption matches well enough: {of_all}, {quoted(best.text)}, {how}"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Piece:
    """A part of a caption that is being streamed. As text, it is the part's own."""

    text: str  # all pieces joined are the caption
    score: float  # log-probability of this piece
    caption: Caption | None = None  # the whole caption, with the last piece

    def __str__(self) -> str:
        return self.text


def parse_caption(tensors: Tensors, options: Tensors | None = None) -> Caption:
    """The best of K captions, with the others as its alternatives. `options` are those that were sent.

    From `caption` BYTES, `score` FP32 and `num_tokens` INT32, each [1, K], and `token_scores` FP32 [1, K, T] with
    padded rows; if matching has chosen them, from `match` and `logit` FP32 [1, K], `dropped` BYTES [1, D] and
    `dropped_match` FP32 [1, D], too. Raises ServerError if one is missing, or empty though nothing was dropped.
    """
    if "dropped" not in tensors:
        return _best(tensors)
    try:
        texts, matches = tensors["dropped"][0].tolist(), tensors["dropped_match"][0].tolist()
        dropped = tuple(Dropped(text.decode(), match) for text, match in zip(texts, matches, strict=True))
        if dropped and not tensors["caption"].size:
            least = (options or {}).get("min_match")
            return Caption("", 0.0, 0, dropped=dropped, min_match=None if least is None else least.item())
        best = _best(tensors)
        captions = [
            replace(each, match=match, logit=logit)
            for each, match, logit in zip(
                (best, *best.alternatives), tensors["match"][0].tolist(), tensors["logit"][0].tolist(), strict=True
            )
        ]
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        raise ServerError(
            f"Expected match and logit of shape [1, K], and dropped and dropped_match of shape [1, D], got "
            f"{_shapes(tensors)}: does the model rerank?"
        ) from exc
    return replace(captions[0], alternatives=tuple(captions[1:]), dropped=dropped)


def _shown(match: float) -> str:
    """The match, rounded down, so that it never looks as high as what it fell short of."""
    return "less than 0.001" if match < 0.001 else f"{math.floor(match * 1000) / 1000:.3f}"


def _best(tensors: Tensors) -> Caption:
    try:
        reason = tensors["finish_reason"].item().decode() if "finish_reason" in tensors else None
        best, *others = zip(
            tensors["caption"][0],
            tensors["score"][0].tolist(),
            tensors["num_tokens"][0].tolist(),
            tensors["token_scores"][0].tolist(),
            strict=True,
        )
        alternatives = tuple(_caption(*other) for other in others)
        return _caption(*best, alternatives, reason)
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        raise ServerError(
            "Expected caption, score and num_tokens of shape [1, K] and token_scores of shape [1, K, T], "
            f"got {_shapes(tensors)}: is it a captioning model?"
        ) from exc


class StreamParser:
    """Reads the outputs of one stream as pieces."""

    def __init__(self) -> None:
        self._score = 0.0  # of the pieces so far
        self._is_complete = False

    def piece(self, tensors: Tensors) -> Piece:
        """The next piece, from `text` BYTES [1, 1] and `score` FP32 [1, 1].

        The last piece has the outputs that `parse_caption` reads and a `finish_reason` as well. Raises ServerError if
        one is missing.
        """
        caption = parse_caption(tensors) if "finish_reason" in tensors else None
        try:
            text = tensors["text"].item().decode()
            score = sum(caption.token_scores) - self._score if caption else float(tensors["score"].item())
        except (LookupError, AttributeError, TypeError, ValueError) as exc:
            raise ServerError(
                f"Expected text and score of shape [1, 1], got {_shapes(tensors)}: is it a captioning model?"
            ) from exc
        self._score += score
        self._is_complete = caption is not None
        return Piece(text, score, caption)

    @contextmanager
    def completed(self) -> Iterator[None]:
        """Raise ServerError if the block ends before the last piece. Errors after the last piece are ignored."""
        try:
            yield
        except BlipstreamError:
            if not self._is_complete:
                raise
        if not self._is_complete:
            raise ServerError("The stream ended before its caption did: ask again for all of it")


def _caption(
    text: bytes,
    score: float,
    num_tokens: int,
    token_scores: list[float],
    alternatives: tuple[Caption, ...] = (),
    finish_reason: str | None = None,
) -> Caption:
    return Caption(text.decode(), score, num_tokens, tuple(token_scores[:num_tokens]), alternatives, finish_reason)


def _shapes(tensors: Tensors) -> str:
    return excerpt(", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()) or "nothing")
