# SPDX-License-Identifier: Apache-2.0
"""The order of captions that match an image, and what is dropped of them."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blipstream.errors import InvalidInput
from blipstream.matching.heads import probabilities
from blipstream.matching.ranking import Candidates, rank
from blipstream.options import RerankOptions

CAPTIONS = [[b"a cat", b"", b"two cats", b"a cat", b"a dog on a mat"], [b"a dog"] * 5]


def numbers(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def candidates(*options: RerankOptions, captions: Sequence[Sequence[bytes]] = CAPTIONS) -> Candidates:
    """Each with the number of its place as its score, and so many tokens as it has characters."""
    shape = len(captions), len(captions[0])
    lengths = np.array([[len(caption) + 1 for caption in row] for row in captions], np.int32)
    positions = np.arange(lengths.max()) < lengths[..., None]
    score = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    token_scores = np.where(positions, score[..., None], 0).astype(np.float32)
    return Candidates(np.array(captions, np.object_), score, lengths, token_scores, options)


def test_each_caption_is_read_once() -> None:
    assert candidates().texts == [[b"a cat", b"", b"two cats", b"a dog on a mat"], [b"a dog"]]


def test_the_best_come_back_with_what_belongs_to_them() -> None:
    both = candidates(RerankOptions(min_match=0.5, num_captions=2), RerankOptions(min_match=0.5, num_captions=3))
    logits = [numbers(0, -math.inf, 2, -1), numbers(-3)]
    outputs = both.ranked(logits, [probabilities(each) for each in logits])
    assert outputs["caption"].tolist() == [[b"two cats", b"a cat"], [b"", b""]]
    assert outputs["score"].tolist() == [[2, 0], [0, 0]]
    assert outputs["num_tokens"].tolist() == [[9, 6], [0, 0]]
    assert outputs["token_scores"].tolist() == [[[2] * 9, [0] * 9], [[0] * 9, [0] * 9]]
    assert outputs["logit"].tolist() == [[2, 0], [0, 0]]
    np.testing.assert_allclose(outputs["match"], numbers(0.880797, 0.5, 0, 0).reshape(2, 2), atol=1e-6)
    assert outputs["dropped"].tolist() == [[b"a dog on a mat", b""], [b"a dog", b""]]
    np.testing.assert_allclose(outputs["dropped_match"], numbers(0.268941, 0, 0.047426, 0).reshape(2, 2), atol=1e-6)
    assert outputs["score"].dtype == outputs["match"].dtype == outputs["dropped_match"].dtype == np.float32
    assert outputs["num_tokens"].dtype == np.int32


def test_no_caption_is_left() -> None:
    one = candidates(RerankOptions(min_match=1), captions=[[b"a cat", b"a dog"]])
    outputs = one.ranked([numbers(1, 2)], [numbers(0.7, 0.9)])
    assert {name: array.shape for name, array in outputs.items()} == {
        "caption": (1, 0),
        "score": (1, 0),
        "num_tokens": (1, 0),
        "token_scores": (1, 0, 0),
        "match": (1, 0),
        "logit": (1, 0),
        "dropped": (1, 2),
        "dropped_match": (1, 2),
    }
    assert outputs["dropped"].tolist() == [[b"a dog", b"a cat"]]


def test_a_caption_without_words_is_dropped_even_if_everything_may_stay() -> None:
    assert rank(numbers(-math.inf, -50), numbers(0, 0), RerankOptions(num_captions=2)) == ([1], [0])


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=10), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_the_order_is_that_of_the_logits_and_nothing_is_lost(scores: list[int], min_match: float) -> None:
    logits = numbers(*scores)
    kept, dropped = rank(logits, probabilities(logits), RerankOptions(min_match=min_match, num_captions=10))
    assert sorted(kept + dropped) == list(range(len(scores)))
    best_first = sorted(range(len(scores)), key=lambda place: -scores[place])  # equal ones in their own order
    assert kept + dropped == best_first
    assert all((1 / (1 + math.exp(-scores[place])) >= min_match) == (place in kept) for place in best_first)


def test_the_threshold_is_compared_in_the_format_of_its_tensor() -> None:
    assert rank(numbers(1), numbers(0.9), RerankOptions(min_match=0.9)).kept == [0]


def test_shapes_that_do_not_fit() -> None:
    three, two = np.zeros((1, 3), np.float32), np.zeros((1, 2, 4), np.float32)
    texts = np.array([[b"a", b"b", b"c"]], np.object_)
    with pytest.raises(InvalidInput, match=r"must have a value for each text, and have \[1, 2\] and \[1, 3\]"):
        Candidates(texts, three, three, two, [RerankOptions()])
