# SPDX-License-Identifier: Apache-2.0
"""What our commands share."""

import sys
from pathlib import Path

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


@pytest.mark.parametrize("command", [serve, build, demo])
def test_an_empty_repository(command: object) -> None:
    """As a path, it would be the working folder."""
    result = CliRunner().invoke(command, ["--repository", ""])  # type: ignore[arg-type]
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence(result.stderr) == "error: --repository is empty: give the name of a folder, or leave it out"


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
