# SPDX-License-Identifier: Apache-2.0
"""The command that adds an extra: it adds it to this environment, and there is no index that has our package."""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from blipstream.extras import how_to_install, missing
from tests.conftest import ROOT


def test_which_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.prefix, "bin")))
    assert how_to_install("cpu", "bench") == "pip install 'blipstream[cpu,bench]'"
    assert missing("locust", "loadtest") == "locust is not installed here: pip install 'blipstream[loadtest]'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert how_to_install("cpu") == f"{shlex.quote(sys.executable)} -m pip install 'blipstream[cpu]'"


@pytest.mark.parametrize("extra", ["loadtest", "tracing"])
def test_the_command_works_without_an_index(extra: str, tmp_path: Path) -> None:
    """All that these extras name is installed here, so pip has nothing to fetch."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras[extra]
    command = [*shlex.split(how_to_install(extra)), "--dry-run", "--no-index"]
    command[:1] = [sys.executable, "-m", "pip"] if command[0] == "pip" else command[:1]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout
