# SPDX-License-Identifier: Apache-2.0
"""Captions with adapters, token for token as PEFT's model gives them, alone and in any company."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from blipstream.config import CheckpointConfig
from blipstream.decoding import Engine
from blipstream.options import DecodingOptions
from tests.conftest import CHECKPOINT, LoadEngine
from tests.reference import Reference
from tests.support.adapters import AdaptedReference
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
    [{}, {"num_beams": 3, "num_captions": 2}, {"num_beams": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}],
    ids=["greedy", "beams", "constrained"],
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
    for name, captions in expected.items():
        alone = engine.requests(embeds, [replace(options, adapter=name)] * IMAGES)
        engine.generate(alone)
        assert_equal([each.captions for each in alone], captions)
    mixed = [(name, index) for index in range(IMAGES) for name in expected]
    requests = [engine.request(embeds[index], replace(options, adapter=name)) for name, index in mixed]
    engine.generate(requests)
    assert_equal([each.captions for each in requests], [expected[name][index] for name, index in mixed])
