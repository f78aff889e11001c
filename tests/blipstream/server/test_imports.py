# SPDX-License-Identifier: Apache-2.0
"""What the server's modules import, each asked in a fresh process."""

import subprocess
import sys
from pathlib import Path

import blipstream.server
from blipstream.server.installation import ROOT

MODULES = sorted(f"blipstream.server.{path.stem}" for path in Path(blipstream.server.__file__).parent.glob("[!_]*.py"))


def imported(*modules: str) -> set[str]:
    """The packages that these modules import, and whatever those import."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_nothing_imports_torch() -> None:
    found = imported(*MODULES)
    assert {"blipstream_client", "PIL"} <= found
    assert "torch" not in found


def test_the_command_imports_what_takes_long_only_when_it_runs() -> None:
    found = imported("blipstream.server.command")
    assert "click" in found
    assert found.isdisjoint({"blipstream_client", "grpc", "numpy", "PIL"})
