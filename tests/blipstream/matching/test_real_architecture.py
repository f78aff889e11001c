# SPDX-License-Identifier: Apache-2.0
"""Base and large at their real size, with random weights: the build itself compares them with transformers."""

from pathlib import Path

import pytest

from blipstream.config import CheckpointConfig
from blipstream_bench.random_checkpoint import save_random_checkpoint
from blipstream_build.build import build
from blipstream_build.inspection import RETRIEVER

SHALLOW = 2  # layers


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("base", SHALLOW),
        pytest.param("base", None, marks=pytest.mark.full),
        pytest.param("large", None, marks=pytest.mark.full),
    ],
)
def test_builds(architecture: str, layers: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_random_checkpoint(tmp_path / "checkpoint", architecture, layers, kind=RETRIEVER)
    build(str(checkpoint), "f32", tmp_path / "models")
    said = capsys.readouterr().out
    assert "installed preprocess, match_encoder, matcher" in said
    for stage in ("images", "texts", "pairs"):
        assert f"  {stage}" in said
    matching = CheckpointConfig.load(tmp_path / "models/matcher/1/openvino").match_config
    assert (matching.text_token_id, matching.pair_token_id, matching.embedding_size) == (101, 30523, 256)
