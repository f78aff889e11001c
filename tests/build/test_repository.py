# SPDX-License-Identifier: Apache-2.0
"""One build at a time writes into a repository, and what a killed one left is removed."""

import errno
import fcntl
from pathlib import Path
from threading import Event, Thread

import pytest

from blipstream.errors import ArtifactError
from blipstream.files import MODEL_REPOSITORY
from blipstream_build.artifacts import Artifact
from blipstream_build.repository import check_is_ours, exclusive, materialise


@pytest.mark.parametrize("inside", ["", "lost+found", "encoder/1/.openvino-x", "decoder/1"])
def test_where_a_build_may_write(inside: str, tmp_path: Path) -> None:
    """Into an empty folder or disk, or one where a build was interrupted."""
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    check_is_ours(tmp_path)


def test_a_build_may_write_where_there_is_a_model_repository(tmp_path: Path) -> None:
    check_is_ours(MODEL_REPOSITORY)
    check_is_ours(tmp_path / "new")
    materialise(tmp_path)
    (tmp_path / "README").touch()
    check_is_ours(tmp_path)


def test_where_a_build_may_not_write(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.pbtxt").touch()
    with pytest.raises(ArtifactError, match=f"^{tmp_path} holds other files and no model repository: give a"):
        check_is_ours(tmp_path)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Set once a build says that it waits for another one."""
    waits = Event()
    monkeypatch.setattr("blipstream_build.repository.click.echo", lambda *_, **__: waits.set())
    return waits


def test_a_second_build_waits(tmp_path: Path, waits: Event) -> None:
    """So it never takes what the first one works on for a leftover."""
    repository = tmp_path / "repository"
    artifact = Artifact(repository / "encoder/1/openvino", "")
    found: list[list[Path]] = []

    def second() -> None:
        with exclusive(repository):
            found.append(list(artifact.folder.parent.iterdir()))

    thread = Thread(target=second)
    with exclusive(repository):
        with artifact.staging() as folder:
            thread.start()
            assert waits.wait(60)
            assert not found
            assert list(artifact.folder.parent.iterdir()) == [folder]
            artifact.install(folder)
        assert not found
    thread.join()
    assert found == [[artifact.folder]]


def test_a_second_build_waits_for_one_that_fails(tmp_path: Path, waits: Event) -> None:
    """Which removes the folder that both have opened."""
    repository = tmp_path / "new" / "repository"
    locked: list[bool] = []

    def second() -> None:
        with exclusive(repository):
            locked.append(repository.is_dir())

    thread = Thread(target=second)
    with exclusive(repository):
        thread.start()
        assert waits.wait(60)
    thread.join()
    assert locked == [True]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "left", ["encoder/1/.tensorrt-x", "encoder/1/.openvino-x", "decoder/1/.new-x", "decoder/1/adapters/.fr-x"]
)
def test_leftovers_of_any_configuration_are_removed(left: str, tmp_path: Path) -> None:
    (tmp_path / left).mkdir(parents=True)
    (tmp_path / left / "model.plan").touch()
    (tmp_path / "encoder/1/openvino").mkdir(parents=True, exist_ok=True)
    with exclusive(tmp_path):
        assert not (tmp_path / left).exists()
        assert (tmp_path / "encoder/1/openvino").exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems are; there is none here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ArtifactError) as error, exclusive(tmp_path / "repository"):
        pass
    assert str(error.value) == (
        f"{tmp_path}/repository cannot be locked against other builds (No locks available): "
        "give a --repository on another file system"
    )
    assert not list(tmp_path.iterdir())
