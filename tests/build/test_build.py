# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to artifacts, as a user does it: by the command."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import verify
from build_repository import main
from tests.conftest import CHECKPOINT

ARTIFACTS = ("preprocess/1/artifact", "encoder/1/openvino", "decoder/1/artifact")


def run(checkpoint: Path | str, repository: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["--checkpoint", str(checkpoint), "--repository", str(repository), *options])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_whole_life(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = run(checkpoint, repository)
    assert first.exit_code == 0, first.output
    for part in (
        "exporting encoder",
        "relative error",
        "captions   8 of 8 equal",
        "installed preprocess, encoder, dec",
    ):
        assert part in first.output
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}

    second = run(checkpoint, repository)
    assert (second.exit_code, second.output) == (0, f"{repository} is up to date with checkpoint\n")
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.parts[-2] in ("artifact", "openvino"))

    # one artifact gone: it alone is made again, from nothing left half done
    shutil.rmtree(repository / "encoder/1/openvino")
    third = run(checkpoint, repository)
    assert third.exit_code == 0, third.output
    assert f"installed encoder in {repository}" in third.output
    assert {path.name for path in (repository / "encoder/1").iterdir()} == {"model.py", "openvino"}

    # another dtype, or other weights: all of it
    fourth = run(checkpoint, repository, "--dtype", "f32")
    assert "installed preprocess, encoder, decoder" in fourth.output
    assert json.loads((repository / "decoder/1/artifact/config.json").read_text())["dtype"] == "f32"
    edit(checkpoint / "generation_config.json", max_length=21)
    assert "installed preprocess, encoder, decoder" in run(checkpoint, repository, "--dtype", "f32").output


def test_what_is_off_is_not_installed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    monkeypatch.setitem(verify.TOLERANCE, "decoder", {"f32": 1e-9, "bf16": 1e-9})
    result = run(checkpoint, repository)
    assert result.exit_code == 1
    assert "error: what was built is too far from transformers: nothing was installed" in result.output
    assert not [path for path in repository.rglob("*") if path.is_file()]  # neither artifacts nor configs of theirs


def test_missing_folder(tmp_path: Path) -> None:
    result = run("nobody/nothing", tmp_path / "repository")
    assert result.exit_code == 1
    assert result.output.startswith("error: there is no folder nobody/nothing, and it could not be downloaded")


def test_neither_folder_nor_hub_name(tmp_path: Path) -> None:
    result = run("no/such/folder", tmp_path / "repository")
    assert result.output == "error: there is no folder no/such/folder, and it is no hub name either\n"


def test_folder_without_checkpoint(tmp_path: Path) -> None:
    result = run(tmp_path, tmp_path / "repository")
    assert result.output == f"error: {tmp_path} is no checkpoint: {tmp_path} has no config.json\n"


def test_another_architecture(checkpoint: Path, tmp_path: Path) -> None:
    edit(checkpoint / "config.json", architectures=["Blip2ForConditionalGeneration"], model_type="blip-2")
    result = run(checkpoint, tmp_path / "repository")
    assert result.exit_code == 1
    assert "is Blip2ForConditionalGeneration (model type blip-2), not a BLIP captioner: expected" in result.output


def test_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    result = run(checkpoint, tmp_path / "repository")
    assert result.exit_code == 1
    assert "has no weights: expected model.safetensors in" in result.output


def test_incomplete_weights(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    result = run(checkpoint, tmp_path / "repository")
    assert result.exit_code == 1
    assert "lacks weights, or has them in another shape: vision_model.post_layernorm.weight" in result.output


def test_weights_cut_short(checkpoint: Path, tmp_path: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    result = run(checkpoint, tmp_path / "repository")
    assert result.exit_code == 1
    assert "cannot be loaded" in result.output


def test_another_activation(checkpoint: Path, tmp_path: Path) -> None:
    settings = json.loads((checkpoint / "config.json").read_text())
    settings["text_config"]["hidden_act"] = "relu"
    (checkpoint / "config.json").write_text(json.dumps(settings))
    result = run(checkpoint, tmp_path / "repository")
    assert result.exit_code == 1
    assert "uses the activation relu: expected gelu" in result.output


def test_repository_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(CHECKPOINT, tmp_path / "file" / "repository")
    assert result.exit_code == 1
    assert "cannot hold artifacts: Not a directory" in result.output
    assert "Traceback" not in result.output
