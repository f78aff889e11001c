# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError


def test_round_trip(f32_artifacts: Path, tmp_path: Path) -> None:
    config = CheckpointConfig.load(f32_artifacts / "decoder/1/artifact")
    assert (config.checkpoint, config.dtype, config.vision.image_size) == ("checkpoint", "f32", 192)
    config.save(tmp_path, fingerprint="anything")
    assert CheckpointConfig.load(tmp_path) == config


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpoint": "x"}', "null"])
def test_foreign_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"config\.json is not one that this version writes: .*make build"):
        CheckpointConfig.load(tmp_path)


def test_field_of_another_version(f32_artifacts: Path, tmp_path: Path) -> None:
    values = json.loads((f32_artifacts / "decoder/1/artifact/config.json").read_text())
    values["text"]["colour"] = "red"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="not one that this version writes"):
        CheckpointConfig.load(tmp_path)
