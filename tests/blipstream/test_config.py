# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import pytest

from blipstream.config import CheckpointConfig, of_one_checkpoint
from blipstream.errors import ArtifactError


def test_round_trip(f32_artifacts: Path, tmp_path: Path) -> None:
    config = CheckpointConfig.load(f32_artifacts / "decoder/1/artifact")
    assert (config.checkpoint, config.dtype, config.vision.image_size) == ("emoji-demo", "f32", 192)
    config.save(tmp_path, fingerprint="anything")
    assert CheckpointConfig.load(tmp_path) == config


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpoint": "x"}', "null"])
def test_foreign_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"config\.json is not one that this version writes: .*blipstream build"):
        CheckpointConfig.load(tmp_path)


def test_field_of_another_version(f32_artifacts: Path, tmp_path: Path) -> None:
    values = json.loads((f32_artifacts / "decoder/1/artifact/config.json").read_text())
    values["text"]["colour"] = "red"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="not one that this version writes"):
        CheckpointConfig.load(tmp_path)


MODELS = {"preprocess": "artifact", "encoder": "openvino", "decoder": "artifact"}


def change(config: Path, **values: object) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


@pytest.fixture
def repository(f32_artifacts: Path, tmp_path: Path) -> Path:
    """Each model's config.json, for a test to change."""
    for model, artifact in MODELS.items():
        folder = tmp_path / model / "1" / artifact
        folder.mkdir(parents=True)
        shutil.copyfile(f32_artifacts / model / "1" / artifact / "config.json", folder / "config.json")
    return tmp_path


@pytest.mark.parametrize("model", MODELS)
def test_of_one_checkpoint(repository: Path, model: str) -> None:
    """The dtypes may differ, and the checkpoint may have moved since."""
    folder = repository / model / "1" / MODELS[model]
    assert of_one_checkpoint(folder) == folder
    change(folder / "config.json", dtype="bf16", checkpoint="moved")
    assert of_one_checkpoint(folder) == folder


@pytest.mark.parametrize("other", MODELS)
@pytest.mark.parametrize("model", MODELS)
def test_of_two_checkpoints(repository: Path, model: str, other: str) -> None:
    change(repository / other / "1" / MODELS[other] / "config.json", checkpoint="another", revision="0123456789abcdef")
    if model == other:
        first = next(each for each in MODELS if each != other)
        expected = f"{other} was built from another@0123456789ab and {first} from emoji-demo@"
    else:
        expected = f" and {other} from another@0123456789ab, where one checkpoint is expected in {repository}: build it"
    with pytest.raises(ArtifactError) as error:
        of_one_checkpoint(repository / model / "1" / MODELS[model])
    assert expected in str(error.value)


def test_encoders_of_other_runtimes_may_be_of_others(repository: Path) -> None:
    """One that fits is enough. The encoder that is served checks itself, unless it is TensorRT's plan."""
    folder = repository / "encoder/1"
    shutil.copytree(folder / "openvino", folder / "torch")
    change(folder / "torch/config.json", revision="0123456789abcdef")
    shutil.copytree(folder / "openvino", folder / "tensorrt")
    (folder / "tensorrt/config.json").write_text("{}")  # written by another version
    of_one_checkpoint(repository / "decoder/1/artifact")
    of_one_checkpoint(repository / "encoder/1/openvino")
    with pytest.raises(ArtifactError, match="encoder was built from emoji-demo@0123456789ab and preprocess from"):
        of_one_checkpoint(repository / "encoder/1/torch")
    shutil.rmtree(folder / "openvino")
    (folder / "torch").rename(folder / ".openvino-staged")
    of_one_checkpoint(repository / "decoder/1/artifact")  # there is no encoder now


def test_a_model_may_be_alone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Triton puts a model that it fetches from an object store into a folder of its own."""
    alone = tmp_path_factory.mktemp("fetched")
    shutil.copytree(repository / "decoder/1", alone / "1")
    of_one_checkpoint(alone / "1/artifact")
