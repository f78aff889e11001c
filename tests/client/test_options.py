# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest

from blipstream.images.resize import DEFAULT_RESIZE_MODE
from blipstream.options import INPUT_NAMES, DecodingOptions
from blipstream_client import InvalidRequest, Options
from blipstream_client._options import OPTIONS, option_tensors


def test_only_given_options_are_sent() -> None:
    assert option_tensors({}) == {}
    tensors = option_tensors({"prompt": "ein Bär", "max_tokens": 20, "min_tokens": None})
    assert list(tensors) == ["prompt", "max_tokens"]
    assert tensors["prompt"].tolist() == [["ein Bär".encode()]]
    assert tensors["max_tokens"].tolist() == [[20]]
    assert tensors["max_tokens"].dtype == np.int32


def test_the_table_lists_every_option_with_its_help() -> None:
    assert list(OPTIONS) == list(Options.__annotations__)
    assert all(option.help.endswith(".") for option in OPTIONS.values())


def test_options_are_those_of_the_server() -> None:
    assert OPTIONS.keys() == set(INPUT_NAMES) - {"image"}
    hints = get_type_hints(DecodingOptions)
    for field in fields(DecodingOptions):
        option = OPTIONS[field.name]
        assert option.type.python is hints[field.name], field.name
        assert option.default == field.default, field.name
        assert type(option.default) is option.type.python, field.name
    assert OPTIONS["resize_mode"].default == DEFAULT_RESIZE_MODE


def test_annotations_are_the_types_that_travel() -> None:
    for name, hint in get_type_hints(Options).items():
        assert hint == OPTIONS[name].type.python | None


def test_the_largest_seed_fits() -> None:
    largest = DecodingOptions(do_sample=True, seed=2**63 - 1).seed
    assert option_tensors({"seed": largest})["seed"].item() == largest


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
    with pytest.raises(InvalidRequest, match=f"{name} must be (a whole number|text|between|text that UTF-8 can hold)"):
        option_tensors({name: value})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("max_token", r": did you mean max_tokens\?"),
        ("max_new_tokens", r": did you mean max_tokens\?"),  # as transformers calls it
        ("num_return_sequences", r": did you mean num_captions\?"),
        ("hue", "; the options are prompt, .*max_tokens.*"),
    ],
)
def test_options_that_do_not_exist(name: str, remedy: str) -> None:
    with pytest.raises(TypeError, match=f"no option '{name}'{remedy}$"):
        option_tensors({name: 7})  # type: ignore[misc]


@pytest.mark.parametrize("value", [0.01, np.float32(0.01), 1, np.int64(1), 3e38, -3e38])
def test_numbers_that_fp32_holds(value: float) -> None:
    tensor = option_tensors({"temperature": value})["temperature"]
    assert tensor.dtype == np.float32
    assert tensor.item() == float(np.float32(value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, -1e39, 10**400])
def test_numbers_that_fp32_does_not_hold(value: float) -> None:
    with pytest.raises(InvalidRequest, match=r"temperature must be between 0\.01 and 100, got"):
        option_tensors({"temperature": value})


def test_whole_numbers_that_do_not_fit() -> None:
    with pytest.raises(InvalidRequest, match=r"max_tokens must be between 1 and 2147483647, got 1099511627776$"):
        option_tensors({"max_tokens": 2**40})


def test_errors_show_numbers_as_they_were_given() -> None:
    with pytest.raises(InvalidRequest, match=r"max_tokens must be a whole number, got (np\.float32\()?0\.01\)?$"):
        option_tensors({"max_tokens": np.float32(0.01)})  # type: ignore[typeddict-item]
