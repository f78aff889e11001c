# SPDX-License-Identifier: Apache-2.0
"""The folder that a build chooses."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from blipstream.errors import ArtifactError
from blipstream_build.cache import cache_folder, cached_repository, how_to_remove, other_revisions


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == tmp_path / ".cache" / "blipstream"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/blipstream")


@pytest.mark.parametrize("home", [{}, {"HOME": ""}])
def test_without_a_home_in_the_environment(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the account's."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(pwd.getpwuid(os.getuid()).pw_dir, ".cache/blipstream")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user in a container, whom /etc/passwd does not know."""

    def unknown(_: int) -> None:
        raise KeyError

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ArtifactError, match=r"^you have no home folder for a cache: set XDG_CACHE_HOME, or give a"):
        cache_folder()


def test_each_revision_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    found = cached_repository("Salesforce/blip-image-captioning-base", "0123456789abcdef", "cpu", "auto")
    assert found == Path("/cache/blipstream/repositories/Salesforce-blip-image-captioning-base-0123456789ab-cpu-auto")
    others = {
        cached_repository("checkpoint", revision, config, dtype)
        for revision in ("a", "b")
        for config in ("cpu", "cuda")
        for dtype in ("auto", "f32")
    }
    assert len(others) == 8


def test_any_name_is_one_short_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    for name in ("モデル" * 60, "../..", "a" * 300, """it's "mine" $HOME"""):
        found = cached_repository(name, "0" * 64, "cpu", "auto")
        assert found.parent == Path("/cache/blipstream/repositories")
        assert len(found.name.encode()) < 200


def test_other_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same name alone, from the oldest on, each with the command that removes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/it's a cache")
    ours = cached_repository("my-blip", "c" * 64, "cpu", "auto")
    old = [
        cached_repository("my-blip", revision * 64, config, "f32") for revision in "ba" for config in ("cpu", "cuda")
    ]
    others = [cached_repository(name, "d" * 64, "cpu", "auto") for name in ("blip", "my-blip-2", "my")]
    for age, folder in enumerate([ours, cached_repository("my-blip", "c" * 64, "cuda", "auto"), *old, *others]):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(20_000_000))
        os.utime(folder, (10**9 - age, 10**9 - age))
    assert other_revisions(ours) == old[::-1]
    command = how_to_remove(old[0])
    assert command.endswith("  # 0.02 GB, of 2001-09-09")
    subprocess.run(["sh", "-c", command], check=True)
    assert other_revisions(ours) == old[:0:-1]
