# SPDX-License-Identifier: Apache-2.0
"""What the client's modules import."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import blipstream_client

FOLDER = Path(blipstream_client.__file__).parent
FOREIGN = {"blipstream", "torch", "transformers"}

Imports = Mapping[str, Set[str]]


def modules() -> dict[str, ast.Module]:
    """The client's modules by name."""
    names = {path: ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts) for path in FOLDER.rglob("*.py")}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text()) for path, name in names.items()}


def imported(module: ast.Module) -> Iterator[str]:
    """The names that a module imports, also within functions."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def imports() -> Imports:
    """The modules of the client that each of them imports."""
    found = modules()
    return {
        name: {module for each in imported(tree) if (module := owner(each, found.keys())) not in (name, None)} - {None}
        for name, tree in found.items()
    }


def owner(name: str, among: Set[str]) -> str | None:
    """The module that an imported name is, or is from."""
    while name and name not in among:
        name = name.rpartition(".")[0]
    return name or None


def circle(graph: Imports) -> list[str]:
    """Modules that import each other in a circle, if there are any."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other() -> None:
    graph = {name: needs for name, needs in imports().items() if name != "blipstream_client"}  # it imports lazily
    assert len(graph) > 20
    assert circle(graph) == []


def test_a_circle_would_be_seen() -> None:
    found = imports()
    transport, http = "blipstream_client._transport", "blipstream_client._http"
    assert transport in found[http]
    assert circle({**found, transport: found[transport] | {http}, "blipstream_client": set()})


def test_nothing_of_the_server_is_imported() -> None:
    for name, tree in modules().items():
        assert not {each.partition(".")[0] for each in imported(tree)} & FOREIGN, name


@pytest.mark.parametrize("module", ["_commands", "_grpc", "_http", "_client", "_async_client", "bulk.job"])
def test_nothing_of_the_server_is_loaded(module: str) -> None:
    """Not even by a library."""
    program = (
        f"import sys, blipstream_client.{module}\nprint(sorted({FOREIGN | {'gevent', 'aiohttp'}} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_command_imports_no_subcommand() -> None:
    """So that --help, and other packages' subcommands, need not wait."""
    heavy = {"blipstream_client._commands", "PIL", "grpc", "httpcore2", "numpy", "tritonclient"}
    program = f"import sys, blipstream_client._cli\nprint(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
