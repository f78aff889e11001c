# SPDX-License-Identifier: Apache-2.0
"""pip says how far it is, and what it says of errors stays."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

import install_packages
from tests.conftest import ROOT

# prints what pip prints, and waits in between until the test has seen that it was told
PIP = """
import pathlib, sys, time
print("Collecting some-package==1.0 (from -r lock (line 1))", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
print("Installing collected packages: some-package, other", flush=True)
while not pathlib.Path(sys.argv[1] + "2").exists():
    time.sleep(0.01)
sys.exit(3)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_it_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    lock, seen = tmp_path / "lock", tmp_path / "seen"
    lock.write_text("some-package==1.0 \\\n    --hash=sha256:0\n# other==2\nother==2.0\n")

    class Output(io.StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            for words, file in {
                "1 of 2 packages (some-package), ": seen,
                "unpacking 2 packages, ": Path(f"{seen}2"),
            }.items():
                if words in text:
                    file.touch()
            return super().write(text)

    output = Output()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(install_packages, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(install_packages, "RENEW_SECONDS", 0.01)
    assert install_packages.main([sys.executable, "-c", PIP, str(seen), "--requirement", str(lock)]) == 3
    assert ("\n" in output.getvalue()) != terminal
    assert all(len(line) < 80 for line in output.getvalue().replace("\r", "\n").splitlines())


def test_one_package() -> None:
    installation = install_packages.Installation(1)
    installation.read("Installing collected packages: some-package")
    assert str(installation) == "unpacking 1 package"


def test_what_pip_says_of_errors_stays(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("no-such-package-of-ours==1.0\n")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--requirement", str(tmp_path / "lock")]
    command = [sys.executable, str(ROOT / "deploy/install_packages.py"), *pip]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No matching distribution found for no-such-package-of-ours==1.0" in done.stderr
