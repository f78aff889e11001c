# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest

from blipstream_client import Caption, Piece, ServerError
from blipstream_client._captions import parse_caption
from blipstream_client._tensors import Tensors


def outputs(**changes: Any) -> Tensors:
    tensors: Tensors = {
        "caption": np.array([[b"a bear", b"a cup"]], dtype=np.object_),
        "score": np.array([[-1.5, -2.5]], dtype=np.float32),
        "num_tokens": np.array([[2, 3]], dtype=np.int32),
        "token_scores": np.array([[[-1, -0.5, 0], [-1, -1, -0.5]]], dtype=np.float32),
    }
    return {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}


def test_the_best_caption_has_the_others_as_alternatives() -> None:
    caption = parse_caption(outputs())
    other = Caption("a cup", -2.5, 3, (-1.0, -1.0, -0.5))
    assert caption == Caption("a bear", -1.5, 2, (-1.0, -0.5), (other,))
    assert (type(caption.score), type(caption.num_tokens)) == (float, int)


def test_printed_it_is_its_text() -> None:
    caption = Caption("a bear", -1.5, 2, (-1.0, -0.5))
    assert f"{caption}" == "a bear"
    assert str(Piece(" bear", -0.5, caption)) == " bear"
    assert repr(caption).startswith("Caption(text='a bear', score=-1.5, num_tokens=2, ")
    assert "token_scores" not in repr(caption)


@pytest.mark.parametrize(
    "changes",
    [
        {"score": None},
        {"num_tokens": np.zeros((1, 0), np.int32)},
        {"token_scores": np.zeros((1, 2), np.float32)},
        {"score": np.zeros(1, np.float32)},
        {"caption": np.array([[b"\xff"]], dtype=np.object_)},
    ],
    ids=["missing", "empty", "scores without tokens", "flat", "not UTF-8"],
)
def test_answers_of_another_model(changes: dict[str, Any]) -> None:
    with pytest.raises(ServerError, match="Expected caption, score and num_tokens"):
        parse_caption(outputs(**changes))
