# SPDX-License-Identifier: Apache-2.0
"""Captions with adapters, token for token as PEFT's model gives them, alone and in any company."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from blipstream.adapters import WEIGHTS_NAME
from blipstream.config import CheckpointConfig
from blipstream.decoding import Engine, Request
from blipstream.decoding.engine import MAX_ADAPTER_BYTES
from blipstream.errors import ArtifactError, InvalidInput
from blipstream.options import METHODS, DecodingOptions, ExplainOptions
from blipstream.text.adapter import Adapter
from tests.blipstream.decoding.test_explainer import Eager, Theirs
from tests.conftest import CHECKPOINT, LoadEngine
from tests.reference import Reference
from tests.support.adapters import ALL_LAYERS, AdaptedReference
from tests.support.transformers_captions import assert_equal, theirs

IMAGES = 6
LORA: list[dict[str, Any]] = [  # of eight adapters
    {},
    {"words": 12, "lora_alpha": 6},
    {"r": 2, "lora_alpha": 3, "use_rslora": True},
    {"r": 16, "lora_alpha": 48},
    {"target_modules": r".*text_decoder.*crossattention.*\.(key|value)", "lora_alpha": 32},
    {"target_modules": r".*text_decoder.*\.layer\.1\..*\.query", "words": 3, "lora_alpha": 80},
    {"rank_pattern": {"intermediate.dense": 7, "query": 1}, "lora_alpha": 6},
    {"words": 40, "r": 3, "lora_alpha": 6},
]
NAMES = [f"adapter-{number}" for number in range(len(LORA))]


@pytest.fixture(scope="module")
def adapted() -> dict[str, AdaptedReference]:
    return {
        name: AdaptedReference(CHECKPOINT, seed, **lora)
        for seed, (name, lora) in enumerate(zip(NAMES, LORA, strict=True))
    }


@pytest.fixture(scope="module")
def artifact(
    f32_artifacts: Path, adapted: dict[str, AdaptedReference], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The decoder's artifact in f32, with adapters beside it."""
    artifact = shutil.copytree(f32_artifacts / "decoder/1/artifact", tmp_path_factory.mktemp("adapters") / "artifact")
    for name, reference in adapted.items():
        reference.save_adapter(artifact.parent / "adapters" / name, CheckpointConfig.load(artifact))
    return artifact


@pytest.fixture(scope="module")
def engine(artifact: Path, load: LoadEngine) -> Engine:
    return load(artifact)


@pytest.fixture(scope="module")
def embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    return reference.embed(scene_images[:IMAGES])


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"num_beams": 3, "num_captions": 2}, id="beams"),
        pytest.param(
            {"num_beams": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
            id="constrained",
            marks=pytest.mark.full,
        ),
    ],
)
def test_alone_and_mixed(
    engine: Engine,
    reference: Reference,
    adapted: dict[str, AdaptedReference],
    embeds: Tensor,
    settings: dict[str, Any],
) -> None:
    options = DecodingOptions(max_tokens=12, **settings)
    expected = {name: theirs(each, embeds, options) for name, each in {"": reference, **adapted}.items()}
    assert all(captions != expected[""] for name, captions in expected.items() if name)
    for name in NAMES[:2]:
        alone = engine.requests(embeds, [replace(options, adapter=name)] * IMAGES)
        engine.generate(alone)
        assert_equal([each.captions for each in alone], expected[name])
    mixed = [(name, index) for index in range(IMAGES) for name in expected]
    requests = [engine.request(embeds[index], replace(options, adapter=name)) for name, index in mixed]
    engine.generate(requests)
    assert_equal([each.captions for each in requests], [expected[name][index] for name, index in mixed])


def log_probs(reference: Reference, embeds: Tensor, request: Request) -> list[float]:
    """The log-probability of each token of a caption, as PEFT's model has it."""
    ids = torch.tensor([request.prompt_ids + request.sequences[0].ids])
    logits = reference.model.text_decoder(input_ids=ids[:, :-1], encoder_hidden_states=embeds[None]).logits
    found = logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0]
    new: list[float] = found[len(request.prompt_ids) - 1 :].tolist()
    return new


def test_sampling_draws_from_its_distribution(
    engine: Engine, reference: Reference, adapted: dict[str, AdaptedReference], embeds: Tensor
) -> None:
    names = ["", *adapted]
    requests = [
        engine.request(embeds[0], DecodingOptions(adapter=name, do_sample=True, seed=seed, max_tokens=10))
        for name in names
        for seed in range(2)
    ]
    engine.generate(requests)
    for request in requests:
        theirs = adapted.get(request.options.adapter, reference)
        assert request.sequences[0].token_scores == pytest.approx(log_probs(theirs, embeds[0], request), abs=1e-4)


def test_as_merged(engine: Engine, adapted: dict[str, AdaptedReference], embeds: Tensor) -> None:
    reference = adapted[NAMES[3]]
    reference.peft.merge_adapter()
    try:
        expected = theirs(reference, embeds, DecodingOptions(max_tokens=12))
    finally:
        reference.peft.unmerge_adapter()  # type: ignore[no-untyped-call]
    requests = engine.requests(embeds, [DecodingOptions(adapter=NAMES[3], max_tokens=12)] * IMAGES)
    engine.generate(requests)
    assert_equal([each.captions for each in requests], expected)


def test_peft_mixes_the_same(artifact: Path, load: LoadEngine, embeds: Tensor, tmp_path: Path) -> None:
    """PEFT's own batch of two adapters and none."""
    both = AdaptedReference(CHECKPOINT, 20)
    both.peft.add_adapter("other", LoraConfig(r=3, target_modules=ALL_LAYERS, lora_alpha=6, init_lora_weights=False))
    both.save_adapter(tmp_path / "default", CheckpointConfig.load(artifact))
    both.save_adapter(tmp_path / "other", CheckpointConfig.load(artifact), "other")
    names = ["default", "__base__", "other", "other", "__base__", "default"]
    config = both.model.config.text_config
    ids = torch.full((IMAGES, 1), config.bos_token_id)
    model: Any = both.peft.base_model
    with model._enable_peft_forward_hooks(adapter_names=names):
        for _ in range(8):
            logits = both.model.text_decoder(input_ids=ids, encoder_hidden_states=embeds).logits[:, -1]
            logits[:, config.sep_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    engine = load(artifact, adapters=tmp_path)
    ours = ["" if name == "__base__" else name for name in names]
    options = [DecodingOptions(adapter=name, max_tokens=8, min_tokens=8) for name in ours]
    requests = engine.requests(embeds, options)
    engine.generate(requests)
    assert [each.sequences[0].ids for each in requests] == ids[:, 1:].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_explained(engine: Engine, adapted: dict[str, AdaptedReference], embeds: Tensor, method: str) -> None:
    """As transformers' attention explains PEFT's model: captions that were generated and given, in one batch."""
    way = ExplainOptions(method=method)
    requests = [engine.request(embeds[1], DecodingOptions(adapter=name, max_tokens=8), explain=way) for name in adapted]
    worded = [name for name, each in adapted.items() if each.num_words]
    requests += [
        engine.request(embeds[1], DecodingOptions(adapter=name), given="a mot1 on a mot2", explain=way)
        for name in worded
    ]
    engine.generate(requests)
    for request in requests:
        reference = adapted[request.options.adapter]
        reference.model.set_attn_implementation("eager")
        expected = Theirs(reference, Eager(reference.model.text_decoder), request)
        assert request.explanation
        assert request.explanation.words == expected.words
        np.testing.assert_allclose(request.explanation.attention, expected.maps(), atol=1e-4, rtol=0)
        assert request.sequences[0].token_scores == pytest.approx(log_probs(reference, embeds[1], request), abs=1e-4)


def test_none_is_as_without_any(artifact: Path, load: LoadEngine, embeds: Tensor) -> None:
    """Bit for bit, also after adapters have run; and the same text beside them."""
    alone, beside = load(artifact, adapters=artifact / "none"), load(artifact)
    options = DecodingOptions(max_tokens=12, do_sample=True, num_captions=2)

    def run(engine: Engine, names: Sequence[str]) -> list[Request]:
        requests = [engine.request(image, replace(options, adapter=name)) for image in embeds for name in names]
        engine.generate(requests)
        return [each for each in requests if not each.adapter]

    expected = [each.sequences for each in run(alone, [""])]
    mixed = run(beside, ["", *NAMES])
    assert [each.sequences for each in run(beside, [""])] == expected
    for request, sequences in zip(mixed, expected, strict=True):
        assert [each.ids for each in request.sequences] == [each.ids for each in sequences]
        assert [each.score for each in request.sequences] == pytest.approx([each.score for each in sequences], abs=1e-4)


def test_adapters_come_and_go_while_requests_run(
    artifact: Path, load: LoadEngine, adapted: dict[str, AdaptedReference], embeds: Tensor, tmp_path: Path
) -> None:
    """A request keeps the adapter that it began with."""
    base = CheckpointConfig.load(artifact)
    engine = load(artifact, adapters=tmp_path)
    options = DecodingOptions(adapter="x", max_tokens=12)
    first, second = (theirs(adapted[name], embeds[:1], replace(options, adapter="")) for name in NAMES[:2])

    def running() -> Request:
        request = engine.request(embeds[0], options)
        engine.admit(request)
        engine.step()
        return request

    with pytest.raises(InvalidInput, match="there is no adapter 'x': this server has none"):
        engine.request(embeds[0], options)
    adapted[NAMES[0]].save_adapter(tmp_path / "x", base)
    before = running()
    (tmp_path / "x").rename(tmp_path / ".old")
    adapted[NAMES[1]].save_adapter(tmp_path / "x", base)
    replaced = running()
    (tmp_path / "x").rename(tmp_path / ".older")
    with pytest.raises(InvalidInput, match="there is no adapter 'x'"):
        engine.request(embeds[0], options)
    engine.generate([])
    assert_equal([before.captions, replaced.captions], [*first, *second])


def test_those_used_last_stay_loaded(artifact: Path, monkeypatch: pytest.MonkeyPatch, embeds: Tensor) -> None:
    loaded: list[str] = []
    load = Adapter.load

    def watched(folder: Path, *more: Any) -> Adapter:
        loaded.append(folder.name)
        return load(folder, *more)

    monkeypatch.setattr(Adapter, "load", watched)
    monkeypatch.setitem(MAX_ADAPTER_BYTES, "cpu", 1 + 2 * Engine.load(artifact)._adapters.get(NAMES[0]).num_bytes)
    engine = Engine.load(artifact)
    loaded.clear()
    requests = [engine.request(embeds[0], DecodingOptions(adapter=NAMES[number])) for number in (0, 4, 0, 5, 0, 3, 4)]
    engine.generate(requests)
    assert all(each.captions for each in requests)
    assert loaded == [NAMES[number] for number in (0, 4, 5, 3, 4)]


def test_refusals(artifact: Path, adapted: dict[str, AdaptedReference], embeds: Tensor, tmp_path: Path) -> None:
    base = CheckpointConfig.load(artifact)
    engine = Engine.load(artifact, adapters=tmp_path)
    for name in ("french", "other", "large", "cut"):
        adapted[NAMES[1]].save_adapter(tmp_path / name, base, revision="0123456789abcdef" if name == "other" else "")
    weights = load_file(tmp_path / "large" / WEIGHTS_NAME)
    save_file({name: torch.cat([each, each], -1) for name, each in weights.items()}, tmp_path / "large" / WEIGHTS_NAME)
    (tmp_path / "cut" / WEIGHTS_NAME).write_bytes(b"half")
    for name, error, words in (
        ("frensh", InvalidInput, r"'frensh' \(did you mean french\?\): there are cut, french, large, other"),
        ("../french", InvalidInput, "there is no adapter '../french'"),
        ("\0", InvalidInput, "there is no adapter"),
        ("other", InvalidInput, "adapter other was made for .*@0123456789ab, and this server has "),
        ("large", ArtifactError, "adapter large is broken, or does not fit this decoder: add it to the server again"),
        ("cut", ArtifactError, "adapter cut is broken"),
    ):
        with pytest.raises(error, match=words):
            engine.request(embeds[0], DecodingOptions(adapter=name))
