# SPDX-License-Identifier: Apache-2.0
"""Commands of other packages: `blipstream serve` and the like."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blipstream_client._plugins import SERVER_COMMANDS

# Hides the entry points of packages that are installed here.
BLIPSTREAM = """
import sys
from importlib.metadata import DistributionFinder, MetadataPathFinder

find = MetadataPathFinder.find_distributions
MetadataPathFinder.find_distributions = lambda context=DistributionFinder.Context(): find(
    context if context.name else DistributionFinder.Context(path=[FOLDER])
)
from blipstream_client.__main__ import main
sys.argv[0] = "blipstream"
main()
"""

SERVE = """
import click, signal

@click.command()
@click.option("--port", default=8000)
def serve(port):
    \"\"\"Serve.\"\"\"
    click.echo(f"port {port}, {signal.getsignal(signal.SIGINT).__name__}")

@click.command()
def fail():
    raise OSError(98, "Address already in use")

@click.command()
def interrupted():
    import os
    os.kill(os.getpid(), signal.SIGINT)

no_command = "serve"
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `blipstream` in a machine where only the packages in `tmp_path` have commands."""

    def run(*arguments: str) -> tuple[int, str, str]:
        result = subprocess.run(
            [sys.executable, "-c", BLIPSTREAM.replace("FOLDER", repr(str(tmp_path))), *arguments],
            env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
        )
        return result.returncode, result.stdout, result.stderr

    return run


def install(folder: Path, **commands: str) -> None:
    """Install a package `toy` with these commands: name=MODULE:OBJECT."""
    (folder / "toy.py").write_text(SERVE)
    info = folder / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in commands.items()]
    (info / "entry_points.txt").write_text("\n".join(["[blipstream.commands]", *lines]))


def test_help_shows_all_commands_without_loading_them(run: Run, tmp_path: Path) -> None:
    install(tmp_path, serve="no_such_module:serve", other="no_such_module:other")
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    installed, _, missing = out.partition("Commands:")[2].partition(
        "Commands of the server's package, which is not installed:"
    )
    own = ["caption", "explain", "bulk", "embed", "filter", "evaluate", "match", "search", "info"]
    assert list(lines(installed)) == [*own, "serve", "other"]
    assert lines(installed)["serve"] == SERVER_COMMANDS["serve"]
    assert lines(installed)["other"] == "From the package toy."
    missing, _, how = missing.partition("\n\n")
    assert "`make wheels`" in how
    assert lines(missing) == {name: SERVER_COMMANDS[name] for name in SERVER_COMMANDS if name != "serve"}


def lines(section: str) -> dict[str, str]:
    """The commands in a section of the help, with their lines."""
    return {line.split()[0]: " ".join(line.split()[1:]) for line in section.splitlines() if line.startswith("  ")}


def test_without_the_servers_package_its_commands_say_how_to_get_it(run: Run) -> None:
    for arguments in (["serve"], ["serve", "--help"], ["build", "checkpoint"], ["bench"]):
        how = "made by `make wheels` in a checkout (docs/quickstart.md)"
        expected = f"Error: blipstream {arguments[0]} needs the server's package, {how}\n"
        assert run(*arguments) == (1, "", expected)


def test_a_command_of_another_package(run: Run, tmp_path: Path) -> None:
    """It gets Python's own handler of Ctrl-C."""
    install(tmp_path, serve="toy:serve")
    assert run("serve", "--port", "1") == (0, "port 1, default_int_handler\n", "")
    for flag in ("-h", "--help"):
        assert "Serve." in run("serve", flag)[1]


def test_ctrl_c_in_a_command_of_another_package(run: Run, tmp_path: Path) -> None:
    install(tmp_path, serve="toy:interrupted")
    assert run("serve") == (1, "", "\nAborted!\n")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:serve", "Cannot load blipstream serve from the package toy: No module named 'no_such_module'"),
        ("toy:nothing", "Cannot load blipstream serve from the package toy: module 'toy' has no attribute 'nothing'"),
        ("toy:no_command", "Expected a click command in toy:no_command of the package toy, got str"),
        ("toy:fail", "blipstream serve failed: [Errno 98] Address already in use"),
    ],
)
def test_a_broken_command_is_one_sentence(run: Run, tmp_path: Path, value: str, words: str) -> None:
    install(tmp_path, serve=value)
    assert run("serve") == (1, "", f"Error: {words}\n")


@pytest.mark.parametrize(
    ("verb", "near"),
    [
        ("sevre", " Did you mean 'serve'?"),
        ("captoin", " Did you mean 'caption'?"),
        ("oter", " Did you mean 'other'?"),
        ("zzz", ""),
    ],
)
def test_no_such_command(run: Run, tmp_path: Path, verb: str, near: str) -> None:
    """What is meant may be a command of another package, or of the server's where that is not installed."""
    install(tmp_path, other="no_such_module:other")
    status, out, err = run(verb)
    assert (status, out) == (2, "")
    assert f"No such command '{verb}'.{near}\n" in err


def test_no_package_replaces_a_command_of_the_client(run: Run, tmp_path: Path) -> None:
    install(tmp_path, caption="toy:serve")
    assert "Print a line for each IMAGE" in run("caption", "--help")[1]
