# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blipstream.decoding import Engine
from blipstream.errors import InvalidInput
from blipstream.options import TYPES, DecodingOptions


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"max_tokens": -5}, "max_tokens must be at least 1, not -5"),
        ({"min_tokens": -1}, "min_tokens must be between 0 and 30 (max_tokens), not -1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be between 0 and 8 (max_tokens), not 9"),
        ({"num_beams": 11}, "num_beams must be between 1 and 10, not 11"),
        ({"num_captions": 0}, "num_captions must be between 1 and 10, not 0"),
        (
            {"num_captions": 3, "num_beams": 2},
            "num_captions must be at most num_beams, which is 2, not 3: raise num_beams, or set do_sample",
        ),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be between 0.01 and 100, not 0.0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be at least 0, not -1"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty must be between -10 and 10, not nan"),
        (
            {"length_penalty": 2.0},
            "length_penalty has a meaning only with num_beams above 1: set that, or leave it out",
        ),
        (
            {"early_stopping": True},
            "early_stopping has a meaning only with num_beams above 1: set that, or leave it out",
        ),
        ({"do_sample": True, "temperature": float("inf")}, "temperature must be between 0.01 and 100, not inf"),
        ({"do_sample": True, "top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
        ({"do_sample": True, "top_k": -1}, "top_k must be at least 0, not -1"),
        ({"top_k": 5}, "top_k has a meaning only with do_sample: set that, or leave it out"),
        ({"seed": 5}, "seed has a meaning only with do_sample: set that, or leave it out"),
        (
            {"do_sample": True, "num_beams": 2},
            "do_sample and num_beams above 1 exclude each other: ask for one of them",
        ),
    ],
)
def test_contradictions(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        DecodingOptions(**values)
    assert str(caught.value) == sentence


def test_from_tensors() -> None:
    tensors = {
        "prompt": np.array([b"caf\xc3\xa9"], np.object_),
        "max_tokens": np.array([7], np.int32),
        "do_sample": np.array([True]),
        "top_p": np.array([0.5], np.float32),
    }
    assert DecodingOptions.from_tensors(tensors) == DecodingOptions("café", max_tokens=7, do_sample=True, top_p=0.5)
    assert DecodingOptions.from_tensors({}) == DecodingOptions()


def test_a_prompt_that_is_not_text() -> None:
    with pytest.raises(InvalidInput, match=r"prompt must be UTF-8 text: invalid start byte at byte 1"):
        DecodingOptions.from_tensors({"prompt": np.array([b"a\xff"], np.object_)})


def test_each_image_has_its_options() -> None:
    tensors = {"max_tokens": np.array([[7], [8]], np.int32), "prompt": np.array([[b"two"], [b""]], np.object_)}
    assert DecodingOptions.from_rows(tensors, 2) == [
        DecodingOptions("two", max_tokens=7),
        DecodingOptions(max_tokens=8),
    ]
    assert DecodingOptions.from_rows({}, 3) == [DecodingOptions()] * 3


@pytest.mark.parametrize(
    ("counts", "images", "sentence"),
    [
        ([1, 3], 2, "num_captions must be the same for all images of a request, not [1, 3]"),
        ([], 1, "num_captions must have a row for each image, 1, not 0"),
        ([1, 1], 3, "num_captions must have a row for each image, 3, not 2"),
        ([], 0, "a request must have an image, and this one has none: send at least one row"),
    ],
)
def test_rows_that_do_not_match(counts: list[int], images: int, sentence: str) -> None:
    tensors = {
        "num_captions": np.array(counts, np.int32).reshape(-1, 1),
        "num_beams": np.full((images, 1), 3, np.int32),
    }
    with pytest.raises(InvalidInput) as caught:
        DecodingOptions.from_rows(tensors, images)
    assert str(caught.value) == sentence


VALUES: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    bool: st.booleans(),
    int: st.integers(-2, 12) | st.sampled_from([-(2**31), 2**31 - 1]),
    float: st.floats(width=32) | st.sampled_from([0.1, 0.5, 1.0, 1.5]),
}
ANY_OPTIONS = st.fixed_dictionaries({}, optional={name: VALUES[kind] for name, kind in TYPES.items()})


def test_a_prompt_that_fits_no_model() -> None:
    """It is refused before the tokenizer sees it."""
    DecodingOptions(prompt="a" * 4096)
    with pytest.raises(InvalidInput, match="prompt must have at most 4,096 characters, not 4,097"):
        DecodingOptions(prompt="a" * 4097)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_OPTIONS)
def test_every_combination_returns_or_is_refused(engine: Engine, values: dict[str, Any]) -> None:
    try:
        options = DecodingOptions(**values)
        request = engine.request(torch.zeros(145, 192), options)
    except InvalidInput:
        return
    engine.generate([request])
    assert len(request.captions) == options.num_captions
    for caption in request.captions:
        assert min(options.min_tokens + 1, options.max_tokens) <= caption.num_tokens <= options.max_tokens
        assert len(caption.token_scores) == caption.num_tokens
        assert np.isfinite(caption.score)


@pytest.mark.parametrize("limit", [0.01, 100.0])
@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_the_limits_of_fractions_are_allowed_as_people_write_them(name: str, limit: float) -> None:
    """FP32 has no 0.01, only a number a little below it."""
    tensors = {name: np.array([limit], np.float32), "do_sample": np.array([True])}
    assert getattr(DecodingOptions.from_tensors(tensors), name) == limit
    beyond = np.nextafter(tensors[name], np.float32(0 if limit < 1 else 1000))
    with pytest.raises(InvalidInput, match=f"{name} must be between 0.01 and 100, not {beyond[0]!s}"):
        DecodingOptions.from_tensors(tensors | {name: beyond})
