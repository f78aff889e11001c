# SPDX-License-Identifier: Apache-2.0
"""What our commands share."""

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from blipstream import command_line
from blipstream.errors import BlipstreamError
from blipstream.files import DEMO_CHECKPOINT, MODEL_REPOSITORY
from blipstream.server.command import main as serve
from blipstream_build.command import main as build
from blipstream_demo.command import main as demo
from tests.conftest import ROOT
from tests.support.terminal import sentence


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv(command_line.CALLED_AS, raising=False)


def test_commands_of_the_program() -> None:
    program = command_line.relative(Path(sys.prefix, "bin", "blipstream"))
    assert command_line.command("serve") == f"{program} serve"
    assert command_line.command("serve", "it's", repository=Path("/a b"), config=None) == (
        f"""{program} serve 'it'"'"'s' --repository '/a b'"""
    )


def test_a_program_on_the_path_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.prefix, "bin")))
    assert command_line.program() == "blipstream"


def test_commands_of_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command_line.CALLED_AS, "make")
    assert command_line.command("serve", str(DEMO_CHECKPOINT), repository=MODEL_REPOSITORY) == "make serve"
    assert command_line.command("serve", "build/demo/checkpoint", repository="model_repository") == "make serve"
    assert command_line.command("build", "a/b", repository="/a b", config="cuda") == (
        "make build CHECKPOINT=a/b 'REPOSITORY=/a b' CONFIG=cuda"
    )


def test_options_of_make(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [command_line.option("users"), command_line.option("processor", "a/b")] == ["--users", "--processor a/b"]
    monkeypatch.setenv(command_line.CALLED_AS, "make")
    assert [command_line.option("users"), command_line.option("processor", "a/b")] == ["USERS=", "PROCESSOR=a/b"]
    assert [command_line.option("http-port"), command_line.option("p95-ms")] == ["HTTP_PORT=", "SLO_P95_MS="]


@pytest.mark.parametrize("command", [serve, build, demo])
def test_an_empty_repository_of_make(command: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(command_line.CALLED_AS, "make")
    result = CliRunner().invoke(command, ["--repository", ""])  # type: ignore[arg-type]
    assert sentence(result.stderr) == "Error: REPOSITORY= is empty: give the name of a folder, or leave it out"


@pytest.mark.parametrize("command", [serve, build, demo])
def test_an_empty_repository(command: object) -> None:
    """As a path, it would be the working folder."""
    result = CliRunner().invoke(command, ["--repository", ""])  # type: ignore[arg-type]
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence(result.stderr) == "Error: --repository is empty: give the name of a folder, or leave it out"


@click.command()
@click.option("--file", type=command_line.OutputFile())
@click.option("--folder", type=command_line.OutputFolder())
def write(file: Path | None, folder: Path | None) -> None:
    click.echo(f"{file} {folder}")


def test_where_something_is_to_be_written(tmp_path: Path) -> None:
    """A file goes into a folder that is there. A folder is made later, if it can be."""
    (tmp_path / "file").touch()
    for option, fault in {
        f"--file={tmp_path}/a b/c": f"there is no folder {tmp_path}/a b: make it by `mkdir -p '{tmp_path}/a b'`",
        f"--file={tmp_path}/file/c": f"there is no folder {tmp_path}/file: ",
        f"--file={tmp_path}": "is a directory",
        f"--folder={tmp_path}/file/c/d": f"cannot be made, since {tmp_path}/file is no folder that can be written",
        f"--folder={tmp_path}/file": "is a file",
    }.items():
        refused = CliRunner().invoke(write, [option])
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert fault in refused.stderr
    folder = tmp_path / "new" / "folder"
    assert CliRunner().invoke(write, [f"--file={tmp_path}/new"]).stdout == f"{tmp_path}/new None\n"
    assert CliRunner().invoke(write, [f"--folder={folder}"]).stdout == f"None {folder}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert f"the folder {tmp_path} cannot be written" in CliRunner().invoke(write, [f"--file={tmp_path}/a"]).stderr
    assert "is no folder that can be written" in CliRunner().invoke(write, [f"--folder={tmp_path}/a/b"]).stderr


@pytest.mark.parametrize("verb", ["bench", "build", "demo", "loadtest", "serve", "tune"])
def test_commands_check_it_before_their_work(verb: str, tmp_path: Path) -> None:
    """Nothing is imported, built or served before."""
    (tmp_path / "file").touch()
    options = {"build": "--repository", "demo": "--sheet", "serve": "--log"}
    command = next(iter(entry_points(group="blipstream.commands", name=verb))).load()
    refused = CliRunner().invoke(command, [options.get(verb, "--output"), f"{tmp_path}/file/sub/a"])
    assert refused.exit_code in (1, 2)
    assert f"{tmp_path}/file" in refused.stderr
    assert refused.stdout == ""


def test_folders() -> None:
    assert command_line.repository_folder(None) is None
    assert command_line.repository_folder("a") == Path("a")
    with pytest.raises(BlipstreamError):
        command_line.repository_folder("")


def test_long_sentences_fit_a_terminal() -> None:
    path = f"/{'x' * 90}"
    lines = command_line.fill(f"{'word ' * 30}{path} {'well-known ' * 20}").splitlines()
    assert path in lines
    assert all(len(line) <= 80 for line in lines if line != path)
    assert not any(line.endswith("-") for line in lines)


@pytest.mark.parametrize("command", [serve, build, demo])
def test_help(command: object) -> None:
    """It fits a terminal, and each option that takes a value shows what holds without it, unless that is nothing."""
    result = CliRunner().invoke(command, ["-h"], terminal_width=80)  # type: ignore[arg-type]
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.output.startswith("Usage: ")
    assert all(len(line) <= 80 for line in result.output.splitlines())
    without = {
        "processor",
        "named",
        "default",
        "fixed",
        "defaults_file",
        "tls_certificate",
        "tls_client_ca",
        "admin_key_file",
        "traces",
    }
    for option in command.params:  # type: ignore[attr-defined]
        if option.param_type_name == "option" and not (option.is_flag or option.count or option.name in without):
            assert option.default is not None or "[default: " in option.help, option.name
