# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from blipstream.adapters import AdapterConfig, adapter_names, find_adapter
from blipstream.config import CheckpointConfig
from blipstream.errors import InvalidInput


@pytest.fixture(scope="module")
def checkpoint(f32_artifacts: Path) -> CheckpointConfig:
    return CheckpointConfig.load(f32_artifacts / "decoder/1/artifact")


def add(folder: Path, name: str, revision: str) -> AdapterConfig:
    config = AdapterConfig("base", revision, "1", language="fr", metrics={"exact": 0.97})
    (folder / name).mkdir(parents=True)
    config.save(folder / name)
    return config


def test_an_adapter_is_found_by_its_name(tmp_path: Path, checkpoint: CheckpointConfig) -> None:
    folder = tmp_path / "adapters"
    with pytest.raises(InvalidInput, match="there is no adapter 'fr': this server has none"):
        find_adapter(folder, "fr", checkpoint)
    config = add(folder, "fr", checkpoint.revision)
    add(folder, ".being-written", checkpoint.revision)
    assert find_adapter(folder, "fr", checkpoint) == config
    assert adapter_names(folder) == ["fr"]


@pytest.mark.parametrize("name", ["", ".", "..", "../adapters/fr", "fr/", "FR", "\0", ".being-written", "f" * 10_000])
def test_what_is_no_name(tmp_path: Path, checkpoint: CheckpointConfig, name: str) -> None:
    for there in ("fr", ".being-written"):
        add(tmp_path, there, checkpoint.revision)
    with pytest.raises(InvalidInput, match=r"^there is no adapter .{2,50}(did you mean fr\?\))?: there are fr$"):
        find_adapter(tmp_path, name, checkpoint)


def test_of_many_some_are_named(tmp_path: Path, checkpoint: CheckpointConfig) -> None:
    for number in range(25):
        add(tmp_path, f"lang-{number:02}", checkpoint.revision)
    with pytest.raises(InvalidInput, match=r"\(did you mean lang-.*\): there are lang-00, .*, lang-19 and 5 more$"):
        find_adapter(tmp_path, "lang_07", checkpoint)


def test_one_of_another_base(tmp_path: Path, checkpoint: CheckpointConfig) -> None:
    add(tmp_path, "fr", "0123456789abcdef")
    told = (
        f"adapter fr was made for base@0123456789ab, and this server has {checkpoint.origin}: leave it out, or ask for"
    )
    with pytest.raises(InvalidInput, match=told):
        find_adapter(tmp_path, "fr", checkpoint)
