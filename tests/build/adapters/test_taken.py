# SPDX-License-Identifier: Apache-2.0
"""Whatever PEFT can save of plain LoRA is converted exactly, and a wrong conversion is not installed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blipstream.adapters import AdapterConfig
from blipstream.decoding import load_engine
from blipstream.errors import ArtifactError
from blipstream.files import DEMO_NAME
from blipstream_build.adapters import convert, install
from blipstream_build.adapters.base import Base
from blipstream_build.adapters.peft_folder import PeftFolder
from tests.support.peft_folders import save_peft_folder

SHAPES: dict[str, dict[str, Any]] = {
    "a list of modules": {"target_modules": ["query", "attention.output.dense"]},
    "ranks of its own": {
        "rank_pattern": {"query": 2, r"layer\.1\.attention\.self\.key": 8},
        "alpha_pattern": {"query": 16, "text_decoder.cls.predictions.transform.dense": 1},
    },
    "rank-stabilised": {"use_rslora": True, "rank_pattern": {"value": 2}},
    "some layers": {"target_modules": ["key", "value"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "words in another order": {"words": 3, "trainable_token_indices": {"word_embeddings": [480, 478, 479]}},
    "words by default": {"words": 2, "trainable_token_indices": [478, 479]},
    "all embeddings": {"words": 3, "embeddings": True},
    "words alone": {"words": 3, "target_modules": ["text_decoder.bert.encoder.layer.0.attention.self.query"]},
}


@pytest.fixture(scope="module")
def repository(f32_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(f32_artifacts, tmp_path_factory.mktemp("adapters") / "repository")


def add(repository: Path, folder: Path) -> AdapterConfig:
    install.add(repository, install.find_adapters([("test", folder)]), Base())
    return AdapterConfig.load(repository / "decoder/1/adapters/test")


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_taken(shape: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is compared with PEFT before it is installed."""
    settings = SHAPES[shape]
    config = add(repository, save_peft_folder(tmp_path / "peft", **settings))
    assert "captions   8 of 8 equal PEFT's" in capsys.readouterr().out
    assert config.num_words == settings.get("words", 0)
    assert (config.base, config.language) == (DEMO_NAME, "")
    (folder,) = (repository / "decoder/1/adapters").iterdir()
    assert (folder / "tokenizer.json").exists() == bool(config.num_words)
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in folder.iterdir())


def test_fan_in_fan_out_is_ignored_as_by_peft(repository: Path, tmp_path: Path) -> None:
    """It is for layers other than nn.Linear."""
    folder = save_peft_folder(tmp_path / "peft")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": True}))
    assert add(repository, folder)


def test_in_the_dtype_that_is_built(f32_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = shutil.copytree(f32_artifacts, tmp_path / "repository")
    config = repository / "decoder/1/artifact/config.json"
    config.write_text(config.read_text().replace('"f32"', '"auto"'))
    add(repository, save_peft_folder(tmp_path / "peft", words=3))
    assert f"decoder    {load_engine(repository / 'decoder/1/artifact').dtype}" in capsys.readouterr().out


def swap(monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    names = convert.LINEAR
    monkeypatch.setattr(convert, "LINEAR", names | {one: names[other], other: names[one]})


def scale(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = PeftFolder.scale
    monkeypatch.setattr(PeftFolder, "scale", lambda self, module: factor * right(self, module))


def reverse_words(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PeftFolder.trained_tokens
    monkeypatch.setattr(PeftFolder, "trained_tokens", lambda self: right(self)[::-1])


@pytest.mark.parametrize(
    "mistake",
    [
        lambda patch: scale(patch, 1.01),
        lambda patch: swap(patch, "attention.self.query", "attention.self.key"),
        reverse_words,
    ],
    ids=["scale", "query and key", "words"],
)
def test_a_wrong_conversion_is_not_installed(
    mistake: Callable[[pytest.MonkeyPatch], None], f32_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = shutil.copytree(f32_artifacts, tmp_path / "repository")
    mistake(monkeypatch)
    with pytest.raises(
        ArtifactError, match=r"^what was converted is too far from PEFT: adapter test was not installed$"
    ):
        add(repository, save_peft_folder(tmp_path / "peft", words=3))
    assert not (repository / "decoder/1/adapters").exists()
