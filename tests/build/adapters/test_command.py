# SPDX-License-Identifier: Apache-2.0
"""`blipstream adapter` and `blipstream build --adapter`, as a user calls them."""

import json
import resource
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from blipstream.adapters import AdapterConfig
from blipstream_build import command as build_command
from blipstream_build.adapters import command
from tests.conftest import CHECKPOINT
from tests.support.peft_folders import save_peft_folder
from tests.support.terminal import sentence


@pytest.fixture
def repository(f32_artifacts: Path, tmp_path: Path) -> Path:
    return shutil.copytree(f32_artifacts, tmp_path / "repository")


def adapter(repository: Path, *arguments: str, fails: bool = False) -> str:
    """What the command prints; of one that `fails`, its sentence."""
    result = CliRunner().invoke(command.main, [*arguments, "--repository", str(repository)])
    assert result.exit_code == fails, result.output
    return sentence(result.stderr) if fails else result.output


def test_whole_life(repository: Path, tmp_path: Path) -> None:
    peft = save_peft_folder(tmp_path / "peft", words=3)
    about = {"base": "emoji-demo", "language": "fr", "metrics": {"exact": 0.98}}
    (peft / "blipstream.json").write_text(json.dumps(about))
    build = ["--checkpoint", str(CHECKPOINT), "--repository", str(repository), "--dtype", "f32"]
    built = CliRunner().invoke(build_command.main, [*build, f"--adapter=fr={peft}", f"--adapter=again={peft}"])
    assert built.exit_code == 0, built.output
    assert "peft does not say which revision of emoji-demo it was made for" in built.output
    assert f"installed adapter again in {repository}\nnext:" in built.output
    assert f"adapter fr is up to date with {peft}" in adapter(repository, "add", f"fr={peft}")

    folder = repository / "decoder/1/adapters/fr"
    config = AdapterConfig.load(folder)
    assert AdapterConfig.load(folder.with_name("again")) == config
    assert (config.language, config.num_words, config.metrics) == ("fr", 3, {"exact": 0.98})
    heading, *rows = adapter(repository, "list").splitlines()
    assert heading.split() == ["name", "language", "words", "size", "base"]
    assert [row.split() for row in rows] == [
        [name, "fr", "3", "0.2", "MB", f"emoji-demo@{config.base_revision[:12]}"] for name in ("again", "fr")
    ]
    listed = json.loads(adapter(repository, "list", "--json"))
    assert [(each["name"], each["metrics"], each["fault"]) for each in listed] == [
        ("again", {"exact": 0.98}, ""),
        ("fr", {"exact": 0.98}, ""),
    ]

    assert "installed adapter fr" in adapter(repository, "add", f"fr={peft}", "--language", "fr-CA")
    assert AdapterConfig.load(folder).language == "fr-CA"
    adapter(repository, "remove", "fr", "again")
    assert not list(folder.parent.iterdir())
    assert adapter(repository, "list") == f"{repository} has no adapters\n"
    assert adapter(repository, "remove", "fr", fails=True) == (
        f"Error: there is no adapter 'fr' in {repository}: it has none"
    )


def test_what_is_stale_is_told_and_added_again(repository: Path, tmp_path: Path) -> None:
    """One for another revision of the base, and one that another version has written."""
    peft = save_peft_folder(tmp_path / "peft")
    adapter(repository, "add", f"de={peft}")
    file = repository / "decoder/1/adapters/de/config.json"
    values = json.loads(file.read_text())
    for stale, fault in (({"base_revision": "0123"}, "for another base"), ({"new": 1}, "of another version")):
        file.write_text(json.dumps(values | stale))
        assert fault in adapter(repository, "list")
        built = CliRunner().invoke(
            build_command.main, ["--repository", str(repository), "--dtype", "f32", str(CHECKPOINT)]
        )
        assert "a server refuses the adapters de from now on" in built.output
    assert f"installed adapter de in {repository}" in adapter(repository, "add", f"de={peft}")
    assert json.loads(file.read_text()) == values


def test_a_full_disk_leaves_what_was_there(repository: Path, tmp_path: Path) -> None:
    """A limit of file sizes stands for it."""
    adapter(repository, "add", f"de={save_peft_folder(tmp_path / 'one')}")
    folder = repository / "decoder/1/adapters"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    other = save_peft_folder(tmp_path / "other", seed=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        said = adapter(repository, "add", f"de={other}", fails=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said.startswith(f"Error: {folder} cannot hold artifacts: File too large; make room there")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("given", ["fr", "=peft", "fr=", ""])
def test_what_is_no_name_and_folder(given: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(command.main, ["add", given, "--repository", str(tmp_path)])
    assert result.exit_code == 2
    assert "expected a name, = and a folder of PEFT's, such as fr=adapters/french" in " ".join(result.stderr.split())


def test_where_there_is_no_base(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no artifact in" in adapter(tmp_path / "none", "list", fails=True)
    peft = save_peft_folder(tmp_path / "peft", target_modules=["key"])
    assert "is given twice: give each a name" in adapter(repository, "add", f"a={peft}", f"a={peft}", fails=True)
    other = shutil.copytree(CHECKPOINT, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    said = adapter(repository, "add", f"a={peft}", "--checkpoint", str(other), fails=True)
    assert f"{other} is other@" in said
    assert "and the repository was built from emoji-demo@" in said
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    missing = CliRunner().invoke(command.main, ["list"])
    assert sentence(missing.stderr).startswith("Error: emoji-demo has not been built for --config cpu: build it by")
    config = repository / "decoder/1/artifact/config.json"
    config.write_text(config.read_text().replace("emoji-demo", "mine"))
    assert "was built from a folder mine: give that folder by --checkpoint" in (
        adapter(repository, "add", f"a={peft}", fails=True)
    )
