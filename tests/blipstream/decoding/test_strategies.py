# SPDX-License-Identifier: Apache-2.0
"""Beam search, sampling and constraints, token for token and number for number as in transformers."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.stats
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from blipstream.decoding import Caption, Engine, Request
from blipstream.decoding.constraints import constrain
from blipstream.decoding.features import Features
from blipstream.decoding.history import History
from blipstream.decoding.sampling import filter_distribution
from blipstream.decoding.slots import OptionColumns
from blipstream.options import DecodingOptions
from tests.reference import Reference
from tests.support.transformers_captions import assert_equal, theirs

CONSTRAINTS: dict[str, dict[str, Any]] = {
    "free": {},
    "long": {"min_tokens": 10},
    "varied": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
}


@pytest.fixture(scope="module")
def embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    """Four scenes, four photographs."""
    photographs = [
        *sklearn.datasets.load_sample_images().images,
        *(getattr(skimage.data, name)() for name in ("astronaut", "camera")),
    ]
    return reference.embed([*scene_images[:4], *(Image.fromarray(array).convert("RGB") for array in photographs)])


def generate(engine: Engine, embeds: Tensor, *options: DecodingOptions) -> list[list[Caption]]:
    """The captions of each image; `options` repeat."""
    requests = [engine.request(embed, options[i % len(options)]) for i, embed in enumerate(embeds)]
    engine.generate(requests)
    return [request.captions for request in requests]


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize("prompt", ["", "two strawberries"])
def test_greedy(engine: Engine, reference: Reference, embeds: Tensor, prompt: str, constraints: str) -> None:
    options = DecodingOptions(prompt=prompt, max_tokens=20, **CONSTRAINTS[constraints])
    assert_equal(generate(engine, embeds, options), theirs(reference, embeds, options))


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize(
    ("num_beams", "length_penalty"), [(2, 1.0), (3, 1.0), (3, -1.0), (5, 0.0), (5, 2.0), (10, 1.0)]
)
def test_beam_search(
    engine: Engine,
    reference: Reference,
    embeds: Tensor,
    num_beams: int,
    length_penalty: float,
    early_stopping: bool,
    constraints: str,
) -> None:
    options = DecodingOptions(
        prompt="two" if num_beams == 3 else "",
        max_tokens=16,
        num_beams=num_beams,
        num_captions=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        **CONSTRAINTS[constraints],
    )
    assert_equal(generate(engine, embeds, options), theirs(reference, embeds, options))


def test_token_scores_add_up(engine: Engine, embeds: Tensor) -> None:
    for options in (DecodingOptions(), DecodingOptions(num_beams=4, num_captions=4, length_penalty=0.5)):
        for caption in (caption for row in generate(engine, embeds, options) for caption in row):
            length = caption.num_tokens ** (0.5 if options.num_beams > 1 else 0)
            assert caption.score == pytest.approx(sum(caption.token_scores) / length, rel=1e-5, abs=1e-5)


MIXED = [
    DecodingOptions(),
    DecodingOptions(num_beams=5, num_captions=2, max_tokens=12),
    DecodingOptions(prompt="a key above", max_tokens=7, min_tokens=7),
    DecodingOptions(do_sample=True, num_captions=3, temperature=2.0, seed=5),
    DecodingOptions(num_beams=2, prompt="two", repetition_penalty=1.3),
    DecodingOptions(do_sample=True, top_k=10, top_p=0.9, seed=6),
    DecodingOptions(num_beams=5, early_stopping=True),
]


def test_company_changes_nothing(engine: Engine, embeds: Tensor) -> None:
    """Every strategy alone, all of them in one batch, and again in another order."""
    jobs = list(product(range(len(embeds)), MIXED))
    alone = [generate(engine, embeds[image, None], options)[0] for image, options in jobs]

    for order in (range(len(jobs)), reversed(range(len(jobs)))):
        requests = {i: engine.request(embeds[jobs[i][0]], jobs[i][1]) for i in order}
        engine.generate(requests.values())
        for i, captions in enumerate(alone):
            assert [caption.text for caption in requests[i].captions] == [caption.text for caption in captions]
            for caption, expected in zip(requests[i].captions, captions, strict=True):
                assert caption.token_scores == pytest.approx(expected.token_scores, rel=1e-3, abs=1e-4)


def test_prompt_may_be_left_out(engine: Engine, embeds: Tensor) -> None:
    ((whole,),) = generate(engine, embeds[:1], DecodingOptions(prompt="a key above"))
    ((rest,),) = generate(engine, embeds[:1], DecodingOptions(prompt="a key above", include_prompt=False))
    assert whole.text == f"a key above {rest.text}"
    assert whole.token_scores == rest.token_scores


def constrained(logits: Tensor, options: DecodingOptions, prompt_ids: list[int], ids: list[int], end: int) -> Tensor:
    """Logits [V] of what follows `ids`, which follow the prompt."""
    request = Request(torch.zeros(0), options, prompt_ids)
    history = History.of([request], 1, 64)
    for token in ids:
        history.append(torch.tensor([[token]]), torch.zeros(1, 1), ngrams=True)
        history.lengths += 1
    scores = logits.clone()
    constrain(scores[None, None], history, OptionColumns.of([options]), end, Features.of(options))
    return scores


def filtered(scores: Tensor, options: DecodingOptions, *, fixed_shapes: bool = False) -> Tensor:
    """The distributions, [R, V], that a request draws from."""
    columns = OptionColumns.of([options] * len(scores))
    values = (columns[name][:, None] for name in ("temperature", "top_k", "top_p"))
    return filter_distribution(scores, *values, some=True, fixed_shapes=fixed_shapes)


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 7},
        {"top_k": 10**6},
        {"top_p": 0.4},
        {"top_p": 1e-6},
        {"temperature": 3.0, "top_k": 40, "top_p": 0.8},
    ],
)
def test_filtered_distribution(values: dict[str, Any], fixed_shapes: bool) -> None:
    """The whole chain on the same logits, as transformers' processors have it."""
    options = DecodingOptions(do_sample=True, min_tokens=4, repetition_penalty=1.2, no_repeat_ngram_size=2, **values)
    torch.manual_seed(0)
    prompt_ids, ids, end_token_id = [90, 4, 5], [6, 4], 3
    processors: LogitsProcessorList = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            NoRepeatNGramLogitsProcessor(2),
            MinNewTokensLengthLogitsProcessor(len(prompt_ids), 4, end_token_id),
        ]
    )
    if options.temperature != 1:
        processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(TopPLogitsWarper(options.top_p))
    for _ in range(20):
        logits = 3 * torch.randn(100)
        expected = processors(torch.tensor([prompt_ids + ids]), logits[None].clone())[0].softmax(0)
        scores = constrained(logits, options, prompt_ids, ids, end_token_id)
        ours = filtered(scores[None], options, fixed_shapes=fixed_shapes)[0]
        torch.testing.assert_close(ours, expected)
        assert torch.equal(ours == 0, expected == 0)


def test_draws_follow_the_distribution(engine: Engine, embeds: Tensor) -> None:
    """Chi-square of 3,000 first tokens, drawn by 300 requests with a seed each."""
    options = DecodingOptions(do_sample=True, temperature=2.5, top_k=8, max_tokens=1, num_captions=10)
    start = torch.tensor([[engine.config.text.start_token_id]])
    probabilities = filtered(engine.logits(start, embeds[5, None]), options)[0]
    requests = [engine.request(embeds[5], DecodingOptions(**(vars(options) | {"seed": seed}))) for seed in range(300)]
    engine.generate(requests)
    drawn = [sequence.ids[0] for request in requests for sequence in request.sequences]
    possible = probabilities.nonzero()[:, 0]
    assert len(possible) == 8
    counts = np.bincount(drawn, minlength=len(probabilities))
    assert counts[possible].sum() == len(drawn) == 3000
    expected = probabilities[possible].double().numpy()
    assert scipy.stats.chisquare(counts[possible], 3000 * expected / expected.sum()).pvalue > 1e-3


def test_equal_seeds_equal_captions(engine: Engine, embeds: Tensor) -> None:
    def sample(seed: int) -> list[str]:
        options = DecodingOptions(do_sample=True, temperature=2.0, num_captions=5, seed=seed)
        return [caption.text for caption in generate(engine, embeds[5:6], options)[0]]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert len(set(sample(1))) > 1


def test_samples_come_best_first(engine: Engine, embeds: Tensor) -> None:
    options = DecodingOptions(do_sample=True, temperature=2.0, num_captions=5)
    scores = [caption.score for caption in generate(engine, embeds[5:6], options)[0]]
    assert scores == sorted(scores, reverse=True)
