# SPDX-License-Identifier: Apache-2.0
"""The folder that a build chooses."""

import os
import pwd
from pathlib import Path

import pytest

from blipstream.errors import ArtifactError
from blipstream_build.cache import cache_folder, cached_repository


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
