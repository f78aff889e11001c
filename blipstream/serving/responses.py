# SPDX-License-Identifier: Apache-2.0
"""Captions as the output tensors of a response."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.decoding import Caption, Explanation, TextDelta


def caption_outputs(captions: Sequence[Sequence[Caption]]) -> dict[str, npt.NDArray[Any]]:
    """The outputs for B images with K captions each.

    caption BYTES, score FP32 and num_tokens INT32 are [B, K]; token_scores FP32 is [B, K, T], padded with zeros.
    """
    longest = max(caption.num_tokens for row in captions for caption in row)
    padded = [[each.token_scores + [0.0] * (longest - each.num_tokens) for each in row] for row in captions]
    return {
        "caption": _bytes([[caption.text for caption in row] for row in captions]),
        "score": np.array([[caption.score for caption in row] for row in captions], np.float32),
        "num_tokens": np.array([[caption.num_tokens for caption in row] for row in captions], np.int32),
        "token_scores": np.array(padded, np.float32),
    }


def explanation_outputs(explanations: Sequence[Explanation]) -> dict[str, npt.NDArray[Any]]:
    """The outputs for the explained captions of B images: words BYTES [B, W], attention FP32 [B, W, P, P].

    Where a caption has fewer words than another one, empty words with zeros follow.
    """
    most = max(len(each.words) for each in explanations)
    attention = np.zeros((len(explanations), most, *explanations[0].attention.shape[1:]), np.float32)
    for row, each in zip(attention, explanations, strict=True):
        row[: len(each.words)] = each.attention
    words = _bytes([each.words + [""] * (most - len(each.words)) for each in explanations])
    return {"words": words.reshape(len(explanations), most), "attention": attention}


def delta_outputs(delta: TextDelta, captions: Sequence[Caption]) -> dict[str, npt.NDArray[Any]]:
    """The outputs for what is new in one image's caption: text BYTES [1, 1] and its score FP32 [1, 1].

    With the last delta come the outputs of the K captions in place of that score, and finish_reason BYTES [1, 1].
    """
    text = {"text": _bytes([[delta.text]])}
    if delta.finish_reason:
        return text | caption_outputs([captions]) | {"finish_reason": _bytes([[delta.finish_reason]])}
    return text | {"score": np.array([[sum(delta.token_scores)]], np.float32)}


def _bytes(rows: Sequence[Sequence[str]]) -> npt.NDArray[Any]:
    """BYTES [B, K]."""
    return np.array([[text.encode() for text in row] for row in rows], np.object_)
