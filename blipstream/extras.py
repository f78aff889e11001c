# SPDX-License-Identifier: Apache-2.0
"""What is installed only for those who ask for it: the optional dependencies in pyproject.toml."""

import shlex
import shutil
import sys
from pathlib import Path


def how_to_install(*extras: str) -> str:
    """The command that adds extras to this environment.

    pip reads in the installed package what they are, so it needs no index that has the package itself.
    """
    found = shutil.which("pip")
    pip = ["pip"] if found and Path(found).parent == Path(sys.prefix, "bin") else [sys.executable, "-m", "pip"]
    return shlex.join([*pip, "install", f"blipstream[{','.join(extras)}]"])


def missing(module: str | None, *extras: str) -> str:
    """What to say of a module that is not installed."""
    return f"{module} is not installed here: {how_to_install(*extras)}"
