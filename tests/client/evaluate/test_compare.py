# SPDX-License-Identifier: Apache-2.0
"""Two runs: equal ones do not differ, and a spoiled one does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blipstream_client import InvalidRequest
from blipstream_client.evaluate.compare import differences, verdict
from blipstream_client.evaluate.metrics import bleu
from blipstream_client.evaluate.scores import BLEU_COUNTS, Scores, load, score
from blipstream_client.evaluate.tokens import WORDS

REFERENCES = [[f"a dog and {number} red cats", f"{number} cats beside a dog"] for number in range(50)]
IMAGES = [f"{number}.jpg" for number in range(50)]
RIGHT = [texts[0] for texts in REFERENCES]


def scores(captions: list[str]) -> Scores:
    return score(IMAGES, captions, REFERENCES, WORDS)[0]


def spoiled(step: int) -> list[str]:
    return ["two birds in a tree" if number % step == 0 else text for number, text in enumerate(RIGHT)]


def test_equal_runs_do_not_differ() -> None:
    found, count = differences(scores(RIGHT), scores(RIGHT))
    assert count == 50
    assert {(each.difference, each.low, each.high) for each in found} == {(0, 0, 0)}
    assert verdict(found) == "Neither run is better: their figures are the same."


def test_a_spoiled_run_is_worse() -> None:
    found, _ = differences(scores(RIGHT), scores(spoiled(5)))
    assert [each.metric for each in found] == [
        *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "length", "repetition")
    ]
    for each in found[:6]:
        assert each.low < each.difference < each.high < 0
    assert verdict(found) == "The second run is worse in BLEU-1, BLEU-2, BLEU-3, BLEU-4, ROUGE-L, CIDEr."
    back, _ = differences(scores(spoiled(5)), scores(RIGHT))
    assert verdict(back) == "The second run is better in BLEU-1, BLEU-2, BLEU-3, BLEU-4, ROUGE-L, CIDEr."
    np.testing.assert_allclose([each.low for each in back], [-each.high for each in found])


def test_chance_is_no_difference() -> None:
    other = ["two birds in a tree" if number % 5 == 1 else text for number, text in enumerate(RIGHT)]
    found, _ = differences(scores(spoiled(5)), scores(other))
    assert all(each.low <= 0 <= each.high for each in found)
    assert verdict(found) == "Neither run is better: chance can make such differences."


def test_figures_are_those_of_the_weighted_images() -> None:
    whole = scores(spoiled(2))
    weights = np.arange(50) % 3 * 1.0
    rows = [row for row in range(50) for _ in range(row % 3)]
    figures = whole.figures(weights)
    assert figures["CIDEr"] == pytest.approx(whole.metrics["CIDEr"][rows].mean())
    assert figures["BLEU-4"] == pytest.approx(bleu(whole.counts[BLEU_COUNTS][rows].sum(0))[3])


def test_images_in_both_runs_are_compared_in_any_order(tmp_path: Path) -> None:
    first, second = scores(RIGHT), scores(spoiled(5))
    second.save(tmp_path / "b.parquet")
    again = load(str(tmp_path / "b.parquet"))
    assert (again.figures(), again.captions, again.references) == (second.figures(), second.captions, REFERENCES)
    order = [*range(49, 9, -1)]
    some = Scores(
        [IMAGES[row] for row in order],
        [again.captions[row] for row in order],
        [again.references[row] for row in order],
        WORDS,
        {name: values[order] for name, values in again.metrics.items()},
        {name: values[order] for name, values in again.counts.items()},
    )
    found, count = differences(first, some)
    assert count == 40
    assert found[0].second == pytest.approx(bleu(second.counts[BLEU_COUNTS][10:].sum(0))[0])


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    first = scores(RIGHT)
    with pytest.raises(InvalidRequest, match=r"no image in common: the first is '0\.jpg', and 'x0\.jpg'"):
        differences(first, replace(first, images=[f"x{name}" for name in IMAGES]))
    with pytest.raises(InvalidRequest, match=r"other references of '3\.jpg'"):
        differences(first, replace(first, references=[*REFERENCES[:3], ["a cat"], *REFERENCES[4:]]))
    with pytest.raises(InvalidRequest, match="counts words, and the second characters"):
        differences(first, replace(first, tokenization="characters"))
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(InvalidRequest, match="Cannot read"):
        load(str(tmp_path / "a.parquet"))
