# SPDX-License-Identifier: Apache-2.0
"""The files of a deployment, read as Docker reads them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from lock import entries
from tests.conftest import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def load_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def compose_variables() -> dict[str, set[str]]:
    """Each variable of the compose file, with its defaults there."""
    variables: dict[str, set[str]] = {}
    for name, default in VARIABLE.findall(COMPOSE.read_text()):
        variables.setdefault(name, set()).add(default)
    return variables


def compose() -> dict[str, Any]:
    """The compose file with every variable at its default."""
    model: dict[str, Any] = load_yaml(VARIABLE.sub(r"\2", COMPOSE.read_text()))
    return model


class Instruction(NamedTuple):
    """A line of the Dockerfile, continuations included."""

    stage: str
    keyword: str
    rest: str


def dockerfile() -> Iterator[Instruction]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    stage = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        keyword, rest = line.split(maxsplit=1)
        if keyword == "FROM":
            stage = rest.split(" AS ")[1]
        yield Instruction(stage, keyword, rest)


def copied() -> list[str]:
    """What the Dockerfile copies out of the build context."""
    lines = [shlex.split(each.rest) for each in dockerfile() if each.keyword == "COPY"]
    return [source for words in lines if not words[0].startswith("--from") for source in words[:-1]]


def in_context(path: str) -> bool:
    """Whether Docker sees a file. The last line of .dockerignore that matches it, or a folder above it, decides."""
    candidates = [path, *map(str, PurePosixPath(path).parents)][:-1]
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.removeprefix("!"))
            pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, candidate) for candidate in candidates):
                included = line.startswith("!")
    return included


def pins(lock: Path) -> dict[str, str]:
    """The version of each package in a lock file, without markers. If a package is there twice, the last one counts."""
    return dict(entry.split()[0].split("==") for entry in entries(lock.read_text()))
