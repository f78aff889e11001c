# SPDX-License-Identifier: Apache-2.0
"""Captions, and how they are read from a model's outputs.

Outputs have a batch of one image: shape [1, K] for its K captions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from blipstream_client._exceptions import BlipstreamError, ServerError
from blipstream_client._tensors import Tensors
from blipstream_client._text import excerpt


@dataclass(frozen=True)
class Caption:
    """A caption of one image. As text, it is the caption's own."""

    text: str
    score: float  # log-probability: the higher, the likelier
    num_tokens: int
    token_scores: tuple[float, ...] = field(default=(), repr=False)  # log-probability of each token
    alternatives: "tuple[Caption, ...]" = ()  # the next best captions, if num_captions asked for them
    finish_reason: str | None = None  # of a stream: "stop", or "length" if max_tokens ended it

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


def parse_caption(tensors: Tensors) -> Caption:
    """The best of K captions, with the others as its alternatives.

    From `caption` BYTES, `score` FP32 and `num_tokens` INT32, each [1, K], and `token_scores` FP32 [1, K, T] with
    padded rows. Raises ServerError if one is missing or empty.
    """
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
