# SPDX-License-Identifier: Apache-2.0
"""Artifacts are put in place in one step."""

from pathlib import Path
from threading import Event, Thread

import pytest

from blipstream.config import CONFIG_NAME
from blipstream_build import artifacts
from blipstream_build.artifacts import Artifact


def install(artifact: Artifact, text: str) -> None:
    with artifact.staging() as folder:
        (folder / CONFIG_NAME).write_text(text)
        artifact.install(folder)


def test_a_reader_always_finds_one(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "artifact", "")
    install(artifact, "0")
    found, ended = set(), Event()

    def read() -> None:
        while not ended.is_set():
            try:
                found.add((artifact.folder / CONFIG_NAME).read_text())
            except FileNotFoundError:
                found.add("none")

    reader = Thread(target=read)
    reader.start()
    for number in range(500):
        install(artifact, str(number))
    ended.set()
    reader.join()
    assert len(found) > 1
    assert "none" not in found
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "RENAME_EXCHANGE", 1 << 20)  # a flag that Linux refuses, as NFS refuses the real one
    artifact = Artifact(tmp_path / "artifact", "")
    for text in ("old", "new"):
        install(artifact, text)
        assert (artifact.folder / CONFIG_NAME).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
