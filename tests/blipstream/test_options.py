# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blipstream.decoding import Engine
from blipstream.errors import InvalidInput
from blipstream.options import (
    DEFAULTS,
    PROBE,
    TYPES,
    DecodingOptions,
    OptionDefaults,
    RequestOptions,
    RerankOptions,
    agreed,
    faults,
)


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
        ([1, 3], 2, "num_captions must be the same for all images of a request, not 1 and 3"),
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


# values of options that depend on each other; None: left out
SOME: dict[str, tuple[Any, ...]] = {
    "max_tokens": (None, 5, 40),
    "min_tokens": (None, 35),
    "num_captions": (None, 3),
    "num_beams": (None, 1, 2, 4),
    "length_penalty": (None, 2.0),
    "do_sample": (None, False, True),
    "temperature": (None, 0.7),
}


def combinations() -> list[dict[str, Any]]:
    sets = product(*SOME.values())
    return [{name: value for name, value in zip(SOME, each, strict=True) if value is not None} for each in sets]


def is_valid(values: Mapping[str, Any]) -> bool:
    return not any(faults({**DEFAULTS, **values}))


def can_be_defaults(values: Mapping[str, Any]) -> bool:
    return all(fault.is_idle for fault in faults({**DEFAULTS, **values}))


def test_no_default_spoils_a_request() -> None:
    """For every request and every set of defaults: what is valid alone is so beside them, and is as it was sent."""
    requests = [values for values in combinations() if is_valid(values)]
    for defaults in filter(can_be_defaults, combinations()):
        for sent in requests:
            values = agreed(sent, defaults)
            assert is_valid(values)
            assert sent.items() <= values.items()
            for name, value in defaults.items():
                # no default gives way without need
                if name not in sent and values[name] != value:
                    assert not is_valid(values | {name: value})


@pytest.mark.parametrize(
    ("sent", "defaults", "expected"),
    [
        ({}, {"max_tokens": 20, "num_beams": 3}, {"max_tokens": 20, "num_beams": 3}),
        ({"max_tokens": 10}, {"max_tokens": 20}, {"max_tokens": 10}),
        ({"do_sample": True}, {"num_beams": 3, "length_penalty": 2.0}, {"do_sample": True}),
        ({"num_beams": 3}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 3}),
        ({"num_beams": 1}, {"num_beams": 3, "length_penalty": 2.0, "num_captions": 3}, {}),
        ({"max_tokens": 5}, {"min_tokens": 10}, {"max_tokens": 5}),
        ({"min_tokens": 25}, {"max_tokens": 20}, {"min_tokens": 25}),
        ({"do_sample": True}, {"temperature": 0.7, "top_k": 50}, {"do_sample": True, "temperature": 0.7, "top_k": 50}),
        ({"temperature": 0.7}, {"do_sample": True}, {"temperature": 0.7, "do_sample": True}),
        ({"num_captions": 3}, {"num_beams": 3}, {"num_captions": 3, "num_beams": 3}),
        ({}, {"prompt": "a picture of"}, {"prompt": "a picture of"}),
        ({"prompt": ""}, {"prompt": "a picture of"}, {}),
    ],
)
def test_whoever_sends_an_option_has_the_last_word(
    sent: dict[str, Any], defaults: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert OptionDefaults(defaults).options(sent) == DecodingOptions(**expected)


@pytest.mark.parametrize(
    ("defaults", "sent", "limit"),
    [
        ({}, {"num_captions": 4}, "num_captions must be at most num_beams, which is 1, not 4: "),
        ({"num_beams": 1}, {"num_captions": 4}, "num_captions must be at most num_beams, which is 1, not 4: "),
        (
            {"num_beams": 3, "length_penalty": 2.0},
            {"num_captions": 4},
            "num_captions must be at most num_beams, which is 3, not 4: ",
        ),
        ({"max_tokens": 20}, {"min_tokens": 50}, "min_tokens must be between 0 and 30 (max_tokens), not 50"),
        ({"max_tokens": 40}, {"min_tokens": 50}, "min_tokens must be between 0 and 40 (max_tokens), not 50"),
    ],
)
def test_a_request_that_is_wrong_alone_may_stay_wrong(
    defaults: dict[str, Any], sent: dict[str, Any], limit: str
) -> None:
    """The sentence names the limit that there is with these defaults."""
    with pytest.raises(InvalidInput) as caught:
        OptionDefaults(defaults).options(sent)
    assert str(caught.value).startswith(limit)


@pytest.mark.parametrize(
    ("fixed", "sent", "sentence"),
    [
        ({"max_tokens": 20}, {"max_tokens": 30}, "max_tokens is fixed at 20 on this server: leave it out"),
        ({"prompt": "a picture"}, {"prompt": ""}, "prompt is fixed at 'a picture' on this server: leave it out"),
        (
            {"include_prompt": False},
            {"include_prompt": True},
            "include_prompt is fixed at false on this server: leave it out",
        ),
        (
            {"num_beams": 3},
            {"do_sample": True},
            "do_sample and num_beams above 1 exclude each other, and num_beams is fixed at 3 on this server: "
            "leave do_sample out",
        ),
        (
            {"min_tokens": 10},
            {"max_tokens": 5},
            "min_tokens must be between 0 and 5 (max_tokens), not 10, and min_tokens is fixed at 10 on this server: "
            "leave max_tokens out",
        ),
        (
            {"do_sample": True, "num_captions": 3},
            {"do_sample": False},
            "num_captions must be at most num_beams, which is 1, not 3, and num_captions is fixed at 3 on this server: "
            "leave do_sample out",
        ),
        ({"num_beams": 3}, {"top_k": -1}, "top_k must be at least 0, not -1"),
    ],
)
def test_what_is_fixed_cannot_be_changed(fixed: dict[str, Any], sent: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        OptionDefaults(fixed, frozenset(fixed) - {"do_sample"}).options(sent)
    assert str(caught.value) == sentence


def test_what_is_fixed_may_be_sent_as_it_is_and_gives_way_where_it_has_no_meaning() -> None:
    fixed = OptionDefaults({"top_k": 50, "max_tokens": 20}, frozenset({"top_k", "max_tokens"}))
    greedy, drawn = DecodingOptions(max_tokens=20), DecodingOptions(max_tokens=20, do_sample=True, top_k=50)
    for sent in ({}, {"top_k": 50}, {"max_tokens": 20}):
        assert fixed.options(sent) == greedy
        assert fixed.options({"do_sample": True, **sent}) == drawn


@pytest.mark.parametrize(
    ("values", "fixed", "allowed"),
    [
        ({}, (), PROBE),
        ({"prompt": "a", "num_beams": 3, "min_tokens": 9, "do_sample": False, "num_captions": 3}, (), PROBE),
        ({"max_tokens": 20}, ("max_tokens",), {name: PROBE[name] for name in PROBE if name != "max_tokens"}),
        ({"max_tokens": 1}, ("max_tokens",), PROBE),
        ({"min_tokens": 9}, ("min_tokens",), {n: PROBE[n] for n in PROBE if n not in ("max_tokens", "min_tokens")}),
        (
            {"num_captions": 3, "num_beams": 4},
            ("num_captions",),
            {name: PROBE[name] for name in PROBE if name not in ("num_captions", "num_beams")},
        ),
    ],
)
def test_a_health_check_sends_what_is_not_fixed(
    values: dict[str, Any], fixed: tuple[str, ...], allowed: dict[str, Any]
) -> None:
    defaults = OptionDefaults(values, frozenset(fixed))
    assert defaults.allowed(PROBE) == allowed
    options = defaults.options(allowed)
    assert all(getattr(options, name) == value for name, value in allowed.items())


def rerank_rows(*images: dict[str, Any], defaults: OptionDefaults | None = None) -> list[int]:
    """How many captions are generated for each image."""
    kinds = {bool: np.bool_, int: np.int32, float: np.float32}
    tensors = {
        name: np.array([[image[name]] for image in images], kinds[type(value)]) for name, value in images[0].items()
    }
    return [each.num_captions for each in RequestOptions.from_rows(tensors, len(images), defaults=defaults).decoding]


def test_rerank_says_how_many_captions_are_generated() -> None:
    assert rerank_rows({"do_sample": True, "rerank": 8}) == [8]
    assert rerank_rows({"num_beams": 8, "rerank": 8, "num_captions": 2, "min_match": 0.5}) == [8]
    assert rerank_rows({"num_beams": 3, "num_captions": 3, "min_match": 0.5}) == [3]
    rows = [{"do_sample": True, "rerank": 4, "num_captions": count} for count in (1, 4)]
    assert rerank_rows(*rows) == [4, 4]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rerank": 0}, "rerank must be between 1 and 10, not 0"),
        ({"rerank": -1}, "rerank must be between 1 and 10, not -1"),
        ({"rerank": 10**6}, "rerank must be between 1 and 10, not 1000000"),
        ({"rerank": 2}, "rerank must be at most num_beams, which is 1, not 2: raise num_beams, or set do_sample"),
        ({"rerank": 4, "num_beams": 3}, "rerank must be at most num_beams, which is 3, not 4"),
        ({"rerank": 2, "num_beams": 2, "num_captions": 3}, "num_captions must be between 1 and 2 (rerank), not 3"),
        ({"rerank": 2, "num_beams": 2, "num_captions": 0}, "num_captions must be between 1 and 2 (rerank), not 0"),
        ({"min_match": -0.1}, "min_match must be between 0 and 1, not -0.1"),
        ({"min_match": 2.0}, "min_match must be between 0 and 1, not 2.0"),
        ({"min_match": float("nan")}, "min_match must be between 0 and 1, not nan"),
    ],
)
def test_reranking_that_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        rerank_rows(options)


def test_images_of_a_request_have_as_many_candidates() -> None:
    with pytest.raises(InvalidInput, match="rerank must be the same for all images of a request, not 2 and 3"):
        rerank_rows(*({"do_sample": True, "rerank": count} for count in (2, 3)))


def test_defaults_beside_rerank() -> None:
    """A default num_captions says how many come back, and is no limit unless it is fixed."""
    three = OptionDefaults({"num_captions": 3, "do_sample": True})
    assert rerank_rows({"rerank": 2}, defaults=three) == [2]
    assert rerank_rows({"min_match": 0.5}, defaults=three) == [3]
    (options,) = RerankOptions.from_rows({"min_match": np.array([[0.5]], np.float32)}, 1, three)
    assert (options.num_captions, options.min_match) == (3, 0.5)
    fixed = OptionDefaults({"num_captions": 1}, frozenset({"num_captions"}))
    with pytest.raises(InvalidInput, match="rerank is fixed at 1 on this server: leave it out"):
        rerank_rows({"rerank": 8, "do_sample": True}, defaults=fixed)


def test_a_given_caption_is_not_reranked() -> None:
    given = {"given_caption": np.array([[b"a cat"]], np.object_), "rerank": np.array([[2]], np.int32)}
    with pytest.raises(InvalidInput, match="rerank has no meaning beside a given caption"):
        RequestOptions.from_rows(given, 1)
