# SPDX-License-Identifier: Apache-2.0
"""Two layers of the real architecture, with random weights, give the tokens of transformers."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blipstream.decoding import Engine
from blipstream.options import DecodingOptions
from blipstream_bench.random_checkpoint import save_random_checkpoint
from blipstream_build.build import build
from tests.conftest import LoadEngine
from tests.reference import Reference
from tests.support.transformers_captions import assert_equal, theirs

GRID: list[dict[str, Any]] = [
    {},
    {"min_tokens": 6, "repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2, "min_tokens": 6},
    {"num_beams": 3},
    {"num_beams": 5, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "min_tokens": 5, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
]
ASKED = [DecodingOptions(prompt=prompt, max_tokens=8, **options) for prompt in ("", "w100 w200") for options in GRID]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint(tmp_path_factory.mktemp("base") / "base", "base", 2)


@pytest.fixture(scope="module")
def base(checkpoint: Path, load: LoadEngine) -> Engine:
    repository = checkpoint.parent / "repository"
    build(str(checkpoint), "f32", repository)
    return load(repository / "decoder/1/artifact")


@pytest.fixture(scope="module")
def embeds() -> Tensor:
    return torch.randn(2, 577, 768, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(checkpoint: Path, embeds: Tensor) -> list[list[list[tuple[str, float]]]]:
    """For each options and image, transformers' captions and their scores."""
    reference = Reference(checkpoint)
    return [theirs(reference, embeds, options) for options in ASKED]


def test_a_grid_in_one_batch(base: Engine, embeds: Tensor, expected: list[list[list[tuple[str, float]]]]) -> None:
    """Prompts of mixed length and strategies of every kind, all together."""
    requests = [[base.request(embed, options) for embed in embeds] for options in ASKED]
    base.generate(chain(*requests))
    for group, captions in zip(requests, expected, strict=True):
        assert_equal([request.captions for request in group], captions)
