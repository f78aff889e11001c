# SPDX-License-Identifier: Apache-2.0
"""Heatmaps from the attention that transformers computes, and where they point."""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration

from blipstream.decoding import Engine, Explanation, Request
from blipstream.decoding.scheduler import Scheduler
from blipstream.errors import InvalidInput
from blipstream.options import METHODS, DecodingOptions, ExplainOptions
from examine_matching_maps import points_into
from scenes import Scene, examination
from tests.conftest import CHECKPOINT
from tests.reference import Reference

TOLERANCE = 1e-4  # of weights that are about 0.01
LAYERS, HEADS = 3, 4  # of the demo checkpoint
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "long": {"max_tokens": 25, "min_tokens": 25},
    "prompt": {"prompt": "a key to the left"},
    "prompt in pieces, left out": {"prompt": "zebra quark 7", "include_prompt": False},
    "beams": {"num_beams": 3, "num_captions": 3, "prompt": "two"},
    "samples": {"do_sample": True, "num_captions": 3, "temperature": 2.0, "seed": 3},
}


@pytest.fixture(scope="module")
def embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    """Two scenes, and an image of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    return reference.embed([*scene_images[:2], Image.fromarray(noise)])


class Eager:
    """transformers' decoder, which shows its attention only in this implementation. It reads each caption once."""

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = decoder
        self._outputs: dict[tuple[float, ...], Any] = {}

    def read(self, ids: Tensor, image_embeds: Tensor) -> Any:
        """The output for ids [1, T] without the last, given image_embeds [1, N, E]."""
        key = (float(image_embeds.double().sum()), *ids[0].tolist())
        if key not in self._outputs:
            with torch.enable_grad():
                self._outputs[key] = self._decoder(
                    input_ids=ids[:, :-1],
                    encoder_hidden_states=image_embeds.clone().requires_grad_(),
                    output_attentions=True,
                    use_cache=False,
                )
        return self._outputs[key]


@pytest.fixture(scope="module")
def eager() -> Eager:
    model = BlipForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32, attn_implementation="eager")
    return Eager(model.eval().text_decoder)


def explain(
    engine: Engine, embeds: Tensor, options: DecodingOptions, *explained: ExplainOptions, **more: Any
) -> list[Request]:
    """A request for each image and each way to explain it, all at once."""
    pairs = product(embeds, explained)
    requests = [engine.request(image, options, explain=each, **more) for image, each in pairs]
    engine.generate(requests)
    return requests


def explanation(request: Request) -> Explanation:
    assert request.explanation
    return request.explanation


class Theirs:
    """What transformers computes for the chosen caption of a request."""

    def __init__(self, reference: Reference, eager: Eager, request: Request) -> None:
        assert request.explain
        chosen = request.sequences[request.explain.caption_index].ids
        self._options = request.explain
        self._ids = torch.tensor([request.prompt_ids + chosen])
        self._output = eager.read(self._ids, request.image_embeds[None].float())
        first = 0 if request.options.include_prompt else len(request.prompt_ids)
        special = set(reference.tokenizer.all_special_ids)
        self.words: list[str] = []
        self._queries: list[list[int]] = []  # of each word's tokens: the positions before
        for position, token_id in enumerate(self._ids[0].tolist()):
            if position < first or token_id in special:
                continue
            piece = reference.tokenizer.convert_ids_to_tokens(token_id)
            if piece.startswith("##") and self.words:
                self.words[-1] += piece.removeprefix("##")
                self._queries[-1].append(position - 1)
            else:
                self.words.append(piece)
                self._queries.append([position - 1])

    def maps(self) -> npt.NDArray[np.float32]:
        found = {"attention": self._attention, "rollout": self._rollout, "gradient": self._gradient}
        patches = torch.stack(found[self._options.method]())[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        return (patches / patches.sum(1, keepdim=True)).view(-1, side, side).detach().numpy()

    def _of_layers(self, weights: Sequence[Tensor]) -> Tensor:
        chosen = weights if self._options.layer < 0 else [weights[self._options.layer]]
        return torch.stack([self._of_heads(each) for each in chosen]).mean(0)

    def _of_heads(self, weights: Tensor) -> Tensor:
        return weights[0].mean(0) if self._options.head < 0 else weights[0, self._options.head]

    def _attention(self) -> list[Tensor]:
        weights = self._of_layers(self._output.cross_attentions)
        return [weights[queries].mean(0) for queries in self._queries]

    def _rollout(self) -> list[Tensor]:
        output = self._output
        tokens = len(self._ids[0]) - 1
        text, image = torch.eye(tokens), torch.zeros(tokens, output.cross_attentions[0].shape[-1])
        for own, crossing in list(zip(output.attentions, output.cross_attentions, strict=True))[
            : LAYERS if self._options.layer < 0 else self._options.layer + 1
        ]:
            mixed = (self._of_heads(own) + torch.eye(tokens)) / 2
            text, image = mixed @ text, mixed @ image
            text, image = text / 2, image / 2 + self._of_heads(crossing) / 2
        assert torch.allclose(text.sum(1) + image.sum(1), torch.ones(tokens))  # nothing gets lost
        return [image[queries].mean(0) for queries in self._queries]

    def _gradient(self) -> list[Tensor]:
        maps = []
        for queries in self._queries:
            with torch.enable_grad():
                log_probs = self._output.logits[0].log_softmax(-1)
                total = torch.stack([log_probs[query, self._ids[0, query + 1]] for query in queries]).sum()
                gradients = torch.autograd.grad(total, self._output.cross_attentions, retain_graph=True)
            products = [
                weights.detach() * gradient.clamp(min=0)
                for weights, gradient in zip(self._output.cross_attentions, gradients, strict=True)
            ]
            maps.append(self._of_layers(products)[queries].mean(0))
        return maps


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_equals_transformers(
    engine: Engine, reference: Reference, eager: Eager, embeds: Tensor, method: str, name: str
) -> None:
    """In each layer and head, alone and all at once."""
    options = DecodingOptions(**OPTIONS[name])
    parts = [*((layer, -1) for layer in range(-1, LAYERS)), *((number % LAYERS, number) for number in range(HEADS))]
    ways = [
        ExplainOptions(caption_index=number % options.num_captions, layer=layer, head=head, method=method)
        for number, (layer, head) in enumerate(parts)
    ]
    few = method == "gradient"  # which takes long
    requests = explain(engine, embeds[::2] if few else embeds, options, *(ways[::3] if few else ways))
    for request in requests:
        theirs = Theirs(reference, eager, request)
        assert explanation(request).words == theirs.words
        np.testing.assert_allclose(explanation(request).attention, theirs.maps(), atol=TOLERANCE, rtol=0)


def test_words_are_the_captions(engine: Engine, embeds: Tensor) -> None:
    for given in OPTIONS.values():
        for request in explain(engine, embeds, DecodingOptions(**given), ExplainOptions()):
            assert " ".join(explanation(request).words) == request.captions[0].text
            np.testing.assert_allclose(explanation(request).attention.sum((1, 2)), 1, rtol=1e-5)


def test_a_caption_without_words(engine: Engine, embeds: Tensor) -> None:
    options = DecodingOptions(prompt="a key", include_prompt=False, max_tokens=1)
    for request in explain(engine, embeds, options, *(ExplainOptions(method=method) for method in METHODS)):
        words, attention = explanation(request).words, explanation(request).attention
        assert attention.shape == (len(words), 12, 12)
        assert attention.dtype == np.float32
    ended = DecodingOptions(prompt="a key on a blue background", include_prompt=False, max_tokens=1)
    silent = [request for request in explain(engine, embeds, ended, ExplainOptions()) if not request.captions[0].text]
    assert silent
    assert all(explanation(request).attention.shape == (0, 12, 12) for request in silent)


@pytest.mark.parametrize("method", METHODS)
def test_a_given_caption_is_as_one_that_was_found(engine: Engine, embeds: Tensor, method: str) -> None:
    way = ExplainOptions(method=method)
    for found in explain(engine, embeds, DecodingOptions(), way):
        text = found.captions[0].text
        (given,) = explain(engine, found.image_embeds[None], DecodingOptions(), way, given=text.upper())
        assert given.captions[0].text == text
        assert given.sequences[0].ids == found.sequences[0].ids
        assert given.captions[0].token_scores == pytest.approx(found.captions[0].token_scores, abs=1e-4)
        assert given.captions[0].score == pytest.approx(found.captions[0].score, abs=1e-4)
        assert explanation(given).words == explanation(found).words
        np.testing.assert_allclose(explanation(given).attention, explanation(found).attention, atol=1e-5)


def test_a_given_caption_is_scored_without_an_explanation(engine: Engine, embeds: Tensor) -> None:
    request = engine.request(embeds[0], DecodingOptions(), given="a dog")
    engine.generate([request])
    assert request.captions[0].text == "a dog"
    assert request.captions[0].num_tokens == len(request.captions[0].token_scores) == 3
    assert request.explanation is None


def test_company_changes_nothing(engine: Engine, embeds: Tensor) -> None:
    """Every way alone, all of them in one batch, and again in another order."""
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"given": "a dog"}),
        ({}, {"given": "a dog to the left of a cat above two whales on a blue background, quark"}),
        ({"num_beams": 3, "num_captions": 2}, {}),
        ({"max_tokens": 3}, {}),
        ({"do_sample": True, "seed": 1}, {}),
    ]
    jobs = [
        (image, DecodingOptions(**options), ExplainOptions(layer=number % 3, method=method), more)
        for number, (image, (options, more), method) in enumerate(product(embeds[:2], ways, METHODS))
    ]

    def request(number: int) -> Request:
        image, options, way, more = jobs[number]
        return engine.request(image, options, explain=way, **more)

    alone = [request(number) for number in range(len(jobs))]
    for each in alone:
        engine.generate([each])
    for order in (range(len(jobs)), range(len(jobs) - 1, -1, -1)):
        together = {number: request(number) for number in order}
        engine.generate(together.values())
        for number, each in together.items():
            assert explanation(each).words == explanation(alone[number]).words
            np.testing.assert_allclose(explanation(each).attention, explanation(alone[number]).attention, atol=1e-5)
            assert each.captions[0].text == alone[number].captions[0].text


def test_who_leaves_is_forgotten(engine: Engine, embeds: Tensor) -> None:
    """A long explanation takes many steps. Who leaves in between costs no more of them."""
    given = "a cat " * 20
    leaving, staying = (
        engine.request(embeds[0], DecodingOptions(), given=given, explain=ExplainOptions(method="gradient"))
        for _ in range(2)
    )
    for each in (leaving, staying):
        engine.admit(each)
    assert engine.step() == []
    engine.cancel(leaving)
    finished: list[Request] = []
    while engine.rows:
        finished += engine.step()
    assert finished == [staying]
    assert leaving.explanation is None


def test_a_short_explanation_does_not_wait_for_long_ones(engine: Engine, embeds: Tensor) -> None:
    """It gets every other step, and a long one that came first gets the rest."""
    way = ExplainOptions(method="gradient")
    given, images = ["a cat " * 20] * 4 + ["a cat"], embeds[:1].expand(5, -1, -1)
    *long, short = engine.requests(images, [DecodingOptions()] * 5, given=given, explain=[way] * 5)
    for each in (*long, short):
        engine.admit(each)
    steps = []
    while engine.rows:
        steps += [engine.step()]
    ends = {request: number for number, finished in enumerate(steps) for request in finished}
    assert ends[short] <= 4
    assert ends[long[0]] == min(ends[each] for each in long)
    assert ends[long[0]] <= 2 * 41  # a word each, in every other step at least


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine)
    yield scheduler
    scheduler.close()


def test_one_that_fails_spoils_no_other(engine: Engine, embeds: Tensor, scheduler: Scheduler) -> None:
    way = ExplainOptions()
    good = [engine.request(embeds[0], DecodingOptions(), given="a dog", explain=way) for _ in range(3)]
    bad = engine.request(embeds[0], DecodingOptions(), given="a dog", explain=way)
    bad.image_embeds = bad.image_embeds[:, :5]  # as no request could have it
    answers: dict[Request, Any] = {}
    for each in (*good[:2], bad, good[2]):
        scheduler.submit(each, lambda delta, each=each: answers.setdefault(each, delta))  # type: ignore[misc]
    scheduler.close()
    assert answers[bad].error
    assert [answers[each].error for each in good] == [None] * 3
    assert all(explanation(each).words == ["a", "dog"] for each in good)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"layer": 3},
        {},
        "layer must be between 0 and 2, or -1 for the mean of all, not 3: this model's text decoder has 3",
    ),
    ({"layer": -2}, {}, "layer must be between 0 and 2, or -1 for the mean of all, not -2"),
    ({"head": 4}, {}, "head must be between 0 and 3, or -1 for the mean of all, not 4"),
    ({"caption_index": 1}, {}, "caption_index must be below num_captions, which is 1, not 1"),
    ({}, {"given": "a 日本 cat"}, "a given caption must be of words that the model knows, and '日' is none"),
    ({}, {"given": "a [SEP] cat"}, "a given caption must be of words that the model knows, and '[SEP]' is none"),
    ({}, {"given": "cat " * 64}, "a given caption must have at most 63 tokens, not 64: shorten it"),
    (
        {"method": "gradient"},
        {"max_tokens": 49},
        "gradient is for captions of at most 48 tokens, and this one may have 49: lower max_tokens or shorten the "
        "prompt, or take another method",
    ),
    (
        {"method": "gradient"},
        {"given": "cat " * 49},
        "gradient is for captions of at most 48 tokens, and this one has 49: shorten it, or take another method",
    ),
]


@pytest.mark.parametrize(("way", "more", "sentence"), REFUSED, ids=str)
def test_refusals(engine: Engine, embeds: Tensor, way: dict[str, Any], more: dict[str, Any], sentence: str) -> None:
    options = DecodingOptions(**{name: value for name, value in more.items() if name != "given"})
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        engine.request(embeds[0], options, explain=ExplainOptions(**way), given=more.get("given"))


def test_the_longest_caption_for_gradients(engine: Engine, embeds: Tensor) -> None:
    """Its end is not counted, as with any caption that is given."""
    assert engine.request(embeds[0], DecodingOptions(), explain=ExplainOptions(method="gradient"), given="cat " * 48)


def test_gradients_of_a_whole_request(engine: Engine, embeds: Tensor) -> None:
    way, given = ExplainOptions(method="gradient"), "cat " * 48
    embeds = embeds[:1].expand(11, -1, -1)
    assert engine.requests(embeds[1:], [DecodingOptions()] * 10, given=[given] * 10, explain=[way] * 10)
    sentence = "gradient is for requests of at most 480 tokens in all captions, and this one may have 528: send several"
    with pytest.raises(InvalidInput, match=sentence):
        engine.requests(embeds, [DecodingOptions()] * 11, given=[given] * 11, explain=[way] * 11)
    assert engine.requests(embeds, [DecodingOptions()] * 11, given=[given] * 11)


def pointing(scenes: list[Scene], requests: list[Request], later: int = 0) -> float:
    """How often the heatmap of an object's word, or of one so many words later, points into the object."""
    hits = []
    for scene, request in zip(scenes, requests, strict=True):
        words, heatmaps = explanation(request).words, explanation(request).attention
        begin = 0
        for placement in scene.placements:
            name = placement.name.split()
            begin = next(at for at in range(begin, len(words)) if words[at : at + len(name)] == name)
            hits += [points_into(heatmaps[begin + i + later], placement) for i in range(len(name))]
            begin += len(name)
    assert len(hits) >= 2 * len(scenes)
    return sum(hits) / len(hits)


def test_heatmaps_point_at_what_words_name(f32_artifacts: Path, reference: Reference) -> None:
    """The heatmap of the query that predicts the word does. That of the query at the word itself does not."""
    engine = Engine.load(f32_artifacts / "decoder/1/artifact")
    scenes = list(examination(500, seed=1))
    images = [scene.draw(192) for scene in scenes]
    embeds = torch.cat([reference.embed(images[begin : begin + 50]) for begin in range(0, len(images), 50)])
    requests = [
        engine.request(image, DecodingOptions(), given=scene.caption, explain=ExplainOptions())
        for image, scene in zip(embeds, scenes, strict=True)
    ]
    engine.generate(requests)
    assert pointing(scenes, requests) >= 0.98
    assert pointing(scenes, requests, later=1) <= 0.8
