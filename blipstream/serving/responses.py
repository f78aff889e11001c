# SPDX-License-Identifier: Apache-2.0
"""Captions as the tensors that answer a request."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.decoding import Caption
from blipstream.decoding.scheduler import Piece


def tensors(captions: Sequence[Sequence[Caption]]) -> dict[str, npt.NDArray[Any]]:
    """B images' K captions each: caption BYTES, score FP32 and num_tokens INT32, all [B, K].

    And token_scores, FP32 [B, K, T], with zeros behind shorter captions.
    """
    longest = max(caption.num_tokens for row in captions for caption in row)
    padded = [[each.token_scores + [0.0] * (longest - each.num_tokens) for each in row] for row in captions]
    return {
        "caption": words([[caption.text for caption in row] for row in captions]),
        "score": np.array([[caption.score for caption in row] for row in captions], np.float32),
        "num_tokens": np.array([[caption.num_tokens for caption in row] for row in captions], np.int32),
        "token_scores": np.array(padded, np.float32),
    }


def piece_tensors(piece: Piece, captions: Sequence[Caption]) -> dict[str, npt.NDArray[Any]]:
    """One image's new text, BYTES [1, 1], with its score, FP32 [1, 1].

    The last one has the K captions' tensors instead of that score, and finish_reason, BYTES [1, 1].
    """
    text = {"text": words([[piece.text]])}
    if piece.finish_reason:
        return text | tensors([captions]) | {"finish_reason": words([[piece.finish_reason]])}
    return text | {"score": np.array([[sum(piece.token_scores)]], np.float32)}


def words(rows: Sequence[Sequence[str]]) -> npt.NDArray[Any]:
    """BYTES [B, K]."""
    return np.array([[text.encode() for text in row] for row in rows], np.object_)
