# SPDX-License-Identifier: Apache-2.0
"""A retrieval checkpoint beside a captioner, and alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from blipstream.config import CheckpointConfig, image_encoder_of
from blipstream.errors import ArtifactError
from blipstream_build.checkpoint import Checkpoint
from blipstream_build.command import main
from blipstream_build.sharing import check_image_size, shares_encoder
from tests.conftest import CHECKPOINT
from tests.support.retrieval import save_retrieval_checkpoint
from tests.support.terminal import sentence


def run(checkpoint: Path, repository: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["--checkpoint", str(checkpoint), "--repository", str(repository), *options])


def edit_text_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    settings["text_config"] |= values
    file.write_text(json.dumps(settings))


@pytest.fixture
def checkpoint(retrieval_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(retrieval_checkpoint, tmp_path / "retrieval")


def test_an_encoder_of_its_own(matching_artifacts: Path, retrieval_checkpoint: Path) -> None:
    artifact = matching_artifacts / "matcher/1/openvino"
    assert image_encoder_of(artifact, matching_artifacts) == "match_encoder"
    assert not shares_encoder(matching_artifacts, artifact)
    captioner = CheckpointConfig.load(matching_artifacts / "preprocess/1/artifact")
    assert captioner.checkpoint == "emoji-demo"
    again = run(retrieval_checkpoint, matching_artifacts, "--dtype", "f32")
    assert f"{matching_artifacts} is up to date with {retrieval_checkpoint.name}" in again.output


def test_an_encoder_that_is_shared(f32_artifacts: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(f32_artifacts, tmp_path / "models")
    checkpoint = save_retrieval_checkpoint(tmp_path / "retrieval", own_vision=False)
    first = run(checkpoint, repository, "--dtype", "f32")
    assert first.exit_code == 0, first.output
    assert "the encoder is shared" in first.output
    assert f"installed matcher in {repository}" in first.output
    artifact = repository / "matcher/1/openvino"
    assert not (repository / "match_encoder/1/openvino").exists()
    assert shares_encoder(repository, artifact)
    assert "is up to date" in run(checkpoint, repository, "--dtype", "f32").output

    # another captioner takes the place of the first, or the same with an encoder in fp8
    file = repository / "encoder/1/openvino/config.json"
    settings = json.loads(file.read_text())
    for change in ({"quantised": "fp8"}, {"weights_hash": "another"}):
        file.write_text(json.dumps(settings | {"vision": settings["vision"] | change}))
        assert not shares_encoder(repository, artifact)
        with pytest.raises(ArtifactError, match=r"share a captioner's encoder, and .* has that of emoji-demo@\w+ now"):
            image_encoder_of(artifact, repository)
    said = run(CHECKPOINT, repository, "--dtype", "f32").output
    assert f"a server has no matching from now on: matching was built from {checkpoint.name}@" in said
    assert f"now: build {checkpoint.name} again\n" in said


def test_images_of_another_size(f32_artifacts: Path, matching_artifacts: Path, tmp_path: Path) -> None:
    config = CheckpointConfig.load(matching_artifacts / "matcher/1/openvino")
    check_image_size(config, f32_artifacts)
    check_image_size(CheckpointConfig.load(f32_artifacts / "decoder/1/artifact"), matching_artifacts)
    for model, artifact in (("decoder", "artifact"), ("encoder", "openvino")):
        folder = tmp_path / model / "1" / artifact
        folder.mkdir(parents=True)
        settings = json.loads((f32_artifacts / model / "1" / artifact / "config.json").read_text())
        settings["vision"]["image_size"] = 384
        (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactError, match=r"takes images of 192 pixels a side, and emoji-demo in .* takes 384: give"):
        check_image_size(config, tmp_path)


def test_the_first_tokens(checkpoint: Path) -> None:
    def tokens() -> tuple[int, int]:
        found = Checkpoint.find(str(checkpoint))
        matching = found.config(found.load_model(), "f32").match_config
        return matching.text_token_id, matching.pair_token_id

    assert tokens() == (2, 477)  # [CLS] and [ENC] of the demo
    edit_text_config(checkpoint, enc_token_id=2)
    assert tokens() == (2, 2)
    edit_text_config(checkpoint, enc_token_id=478)
    with pytest.raises(ArtifactError, match="has enc_token_id 478: expected one of the model's 478 embeddings"):
        tokens()


def test_without_cross_attention(checkpoint: Path, tmp_path: Path) -> None:
    edit_text_config(checkpoint, is_decoder=False)
    refused = run(checkpoint, tmp_path / "models")
    assert refused.exit_code == 1
    said = sentence(refused.stderr)
    assert "has is_decoder false" in said or "has no place" in said


def test_the_weights_of_a_captioner(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copyfile(CHECKPOINT / "model.safetensors", checkpoint / "model.safetensors")
    refused = run(checkpoint, tmp_path / "models")
    assert refused.exit_code == 1
    assert "lacks" in sentence(refused.stderr)
    assert not (tmp_path / "models").exists()
