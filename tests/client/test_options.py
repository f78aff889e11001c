# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest

from blipstream_client import Caption, InvalidRequest, Options, ServerError
from blipstream_client._captions import parse_caption
from blipstream_client._options import OPTIONS, option_tensors
from blipstream_client._tensors import Tensors, image_tensor


def test_an_image_is_one_string_of_a_batch_of_one() -> None:
    tensor = image_tensor(b"\x89PNG\0\0")
    assert tensor.shape == (1, 1)
    assert tensor.dtype == np.object_
    assert tensor[0, 0] == b"\x89PNG\0\0"  # trailing zeros and all


def test_only_options_that_are_given_travel() -> None:
    assert option_tensors({}) == {}
    tensors = option_tensors({"prompt": "ein Bär", "max_tokens": 20, "min_tokens": None})
    assert list(tensors) == ["prompt", "max_tokens"]
    assert tensors["prompt"].tolist() == [["ein Bär".encode()]]
    assert tensors["max_tokens"].tolist() == [[20]]
    assert tensors["max_tokens"].dtype == np.int32


def test_the_table_lists_every_option_with_its_help() -> None:
    assert list(OPTIONS) == list(Options.__annotations__)
    assert all(option.help.endswith(".") for option in OPTIONS.values())


def test_numpy_numbers_are_numbers() -> None:
    assert option_tensors({"max_tokens": np.int64(7)})["max_tokens"].tolist() == [[7]]  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "7"),
        ("max_tokens", 7.0),
        ("max_tokens", True),
        ("max_tokens", 2**31),
        ("prompt", 7),
        ("prompt", b"a picture of"),
        ("prompt", "\ud800"),
    ],
)
def test_values_of_the_wrong_kind(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        option_tensors({name: value})  # type: ignore[misc]


def test_options_that_do_not_exist() -> None:
    with pytest.raises(TypeError, match=r"no option 'max_token'; the options are .*max_tokens"):
        option_tensors({"max_token": 7})  # type: ignore[typeddict-unknown-key]


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


@pytest.mark.parametrize("value", [0.01, np.float32(0.01), 1, np.int64(1), 3e38, -3e38])
def test_numbers_that_fp32_holds(value: float) -> None:
    tensor = option_tensors({"temperature": value})["temperature"]
    assert tensor.dtype == np.float32
    assert tensor.item() == float(np.float32(value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, -1e39, 10**400])
def test_numbers_that_fp32_does_not_hold(value: float) -> None:
    with pytest.raises(InvalidRequest, match=r"temperature must be between -3\.40.*e\+38 and 3\.40.*e\+38, got"):
        option_tensors({"temperature": value})


def test_numbers_are_shown_as_they_were_given() -> None:
    with pytest.raises(InvalidRequest, match=r"max_tokens must be int, got (np\.float32\()?0\.01\)?$"):
        option_tensors({"max_tokens": np.float32(0.01)})  # type: ignore[typeddict-item]
