# SPDX-License-Identifier: Apache-2.0
"""The GPU's engine does what the CPU's does, whatever is asked of it at once."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blipstream.engine import Request
from blipstream.engine.graphed import GraphedEngine
from blipstream.engine.rows import RowEngine
from blipstream.options import DecodingOptions
from tests.conftest import DEVICES
from tests.reference import Reference


@pytest.fixture(scope="module")
def embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    """24 scenes, and as many that show nothing known: long captions."""
    embeds = reference.embed(scene_images[:24])
    return torch.cat([embeds, embeds.flip(1) * 1.5])


def random_options(rng: Random) -> DecodingOptions:
    options: dict[str, Any] = {
        "prompt": rng.choice(["", "", "a", "two dogs on a", "a key to the left of a"]),
        "max_tokens": rng.choice([1, 5, 12, 30, 45]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.4]),
        "no_repeat_ngram_size": rng.choice([0, 0, 1, 2, 3]),
    }
    options["min_tokens"] = rng.randint(0, options["max_tokens"])
    kind = rng.choice(["greedy", "beams", "sample"])
    if kind == "beams":
        options["num_beams"] = rng.randint(2, 5)
        options["num_captions"] = rng.randint(1, options["num_beams"])
        options["length_penalty"] = rng.choice([-1.0, 0.0, 1.0, 2.0])
        options["early_stopping"] = rng.choice([True, False])
    elif kind == "sample":
        options |= {"do_sample": True, "num_captions": rng.randint(1, 4), "seed": rng.randint(0, 2**40)}
        options |= {"temperature": rng.choice([0.7, 1.0, 1.8]), "top_k": rng.choice([0, 0, 5])}
        options["top_p"] = rng.choice([1.0, 1.0, 0.8])
    return DecodingOptions(**options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_rows", [7, 512])
def test_equals_the_cpu_engine(f32_artifacts: Path, embeds: Tensor, device: str, max_rows: int) -> None:
    """Mixed strategies that join and leave, more than fit at once: lanes grow, fill, empty and close gaps."""
    rng = Random(max_rows)
    asked = [(embed, random_options(rng)) for embed in embeds for _ in range(2)]
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = RowEngine.load(folder), GraphedEngine.load(folder, device, max_rows=max_rows)
    expected = [theirs.request(*each) for each in asked]
    theirs.generate(expected)
    requests = [ours.request(*each) for each in asked]
    arrivals = iter(requests)
    finished = 0
    while finished < len(requests):
        for _ in range(rng.randint(0, 3)):
            if (request := next(arrivals, None)) is not None:
                ours.add(request)
        finished += len(ours.step())
    for request, other in zip(requests, expected, strict=True):
        assert [sequence.ids for sequence in request.sequences] == [sequence.ids for sequence in other.sequences]
        for sequence, theirs_too in zip(request.sequences, other.sequences, strict=True):
            assert sequence.token_scores == pytest.approx(theirs_too.token_scores, rel=1e-4, abs=1e-4)
            assert sequence.sequence_score == pytest.approx(theirs_too.sequence_score, rel=1e-4, abs=1e-4)
        assert [caption.text for caption in request.captions] == [caption.text for caption in other.captions]


def test_shapes_repeat(f32_artifacts: Path, embeds: Tensor) -> None:
    """Whatever number of requests of whatever length is under way, few shapes of a step come up: each is a graph."""
    engine = GraphedEngine.load(f32_artifacts / "decoder/1/artifact")
    keys = set()
    for count in range(1, 17):
        requests = [
            engine.request(embed, DecodingOptions(max_tokens=3 + i, min_tokens=3 + i))
            for i, embed in enumerate(embeds[:count])
        ]
        engine.generate(requests)
        (lane,) = engine._lanes.values()
        keys |= lane._graphs._seen
    assert keys == {(slots, 32, True, False) for slots in (1, 2, 4, 8, 16)}


def test_failure_leaves_nothing_behind(f32_artifacts: Path, embeds: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = GraphedEngine.load(f32_artifacts / "decoder/1/artifact")
    request = engine.request(embeds[0], DecodingOptions())

    def fail(hidden: Tensor) -> Tensor:
        raise RuntimeError(f"no memory for {hidden.shape}")

    with monkeypatch.context() as patch:
        patch.setattr(engine._decoder, "logits", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            engine.generate([request])
    engine.generate([request])
    assert request.captions


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_no_number_harms_nobody_else(f32_artifacts: Path, embeds: Tensor, device: str) -> None:
    """Neither those beside it nor those who come into its place."""
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = RowEngine.load(folder), GraphedEngine.load(folder, device)
    for options in (DecodingOptions(max_tokens=9), DecodingOptions(do_sample=True), DecodingOptions(num_beams=3)):
        expected = [theirs.request(embed, options) for embed in embeds[:4]]
        theirs.generate(expected)
        broken, *requests = (ours.request(embed, options) for embed in embeds[[0, 1, 2, 3]])
        broken.image_embeds = broken.image_embeds * float("nan")
        ours.generate([broken, *requests])
        late = [ours.request(embed, options) for embed in embeds[:4]]
        ours.generate(late)
        assert broken.captions
        assert_same(requests, expected[1:])
        assert_same(late, expected)


def assert_same(requests: list[Request], expected: list[Request]) -> None:
    assert [each.captions[0].text for each in requests] == [each.captions[0].text for each in expected]
    for ours, theirs in zip(requests, expected, strict=True):
        assert ours.captions[0].token_scores == pytest.approx(theirs.captions[0].token_scores, abs=1e-3)


@pytest.mark.requires_cuda
def test_f16(f32_artifacts: Path, embeds: Tensor) -> None:
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = RowEngine.load(folder), GraphedEngine.load(folder, "cuda", "f16")
    for options in (DecodingOptions(), DecodingOptions(num_beams=3)):
        expected = [theirs.request(embed, options) for embed in embeds[:24]]
        requests = [ours.request(embed, options) for embed in embeds[:24]]
        theirs.generate(expected)
        for _ in range(3):  # by ordinary steps, then by graphs
            ours.generate(requests)
        equal = [a.captions[0].text == b.captions[0].text for a, b in zip(requests, expected, strict=True)]
        assert sum(equal) >= 23
