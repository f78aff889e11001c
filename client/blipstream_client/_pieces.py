# SPDX-License-Identifier: Apache-2.0
"""A stream's answers as the pieces of a caption."""

from collections.abc import Iterator
from contextlib import contextmanager

from blipstream_client._contract import Piece, Tensors, parse_caption
from blipstream_client._exceptions import BlipstreamError, ServerError, excerpt


class Pieces:
    """Reads the answers of one stream."""

    def __init__(self) -> None:
        self._score = 0.0  # of the pieces so far
        self._whole = False

    def read(self, answer: Tensors) -> Piece:
        """From `text` BYTES [1, 1] and `score` FP32 [1, 1], or with the last piece all that a caption has.

        Raises ServerError where one is missing.
        """
        caption = parse_caption(answer) if "finish_reason" in answer else None
        try:
            text = answer["text"].item().decode()
            score = sum(caption.token_scores) - self._score if caption else float(answer["score"].item())
        except (LookupError, AttributeError, TypeError, ValueError) as exc:
            shapes = {name: tensor.shape for name, tensor in answer.items()}
            raise ServerError(
                f"Expected text and score of shape [1, 1], got {excerpt(shapes)}: is it a captioning model?"
            ) from exc
        self._score += score
        self._whole = caption is not None
        return Piece(text, score, caption)

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Raises ServerError unless the last piece was read within; what fails after that does no harm."""
        try:
            yield
        except BlipstreamError:
            if not self._whole:
                raise
        if not self._whole:
            raise ServerError("The stream ended before its caption did: ask again for all of it")
