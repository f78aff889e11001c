# SPDX-License-Identifier: Apache-2.0
"""The walls between the packages: who may import whom, directly or through others.

Imports are read from the source, inside functions too. What only a type checker reads is no import.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = (ROOT, ROOT / "client", ROOT / "build", ROOT / "loadtest")  # folders from which modules are imported by name
TOOL_PACKAGES = (
    *("blipstream_build", "blipstream_calibrate", "blipstream_demo", "blipstream_finetune"),
    *("blipstream_bench", "blipstream_loadtest", "blipstream_tune"),
)
PACKAGES = ("blipstream", "blipstream_client", *TOOL_PACKAGES)
TRITON = "triton_python_backend_utils"
INNER_ROOMS = ("images", "vision", "text", "decoding", "matching")
TOOLS = (*TOOL_PACKAGES, *(path.stem for path in (ROOT / "build").glob("*.py")))
# who must not reach whom; a name stands for its submodules, too
WALLS = {
    **{f"blipstream.{room}": ("blipstream.serving", "blipstream.server") for room in INNER_ROOMS},
    "blipstream.serving": ("blipstream.server",),
    "blipstream.server": ("torch",),
    "blipstream": ("transformers", "tritonclient", TRITON, *TOOLS),
    "blipstream_client": ("torch", "transformers", "blipstream", TRITON, *TOOLS),
}
Graph = dict[str, set[str]]  # the modules that each of our modules imports


def modules() -> dict[str, Path]:
    """The files of our modules, by their names."""
    found = {}
    for folder in SOURCES:
        for path in (path for package in PACKAGES for path in (folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def graph_of(sources: dict[str, str]) -> Graph:
    """What each module imports; `sources` has their code by their names."""
    return {
        name: {target for each in imports_in(code) for target in targets(each, sources)} - {name}
        for name, code in sources.items()
    }


@cache
def imports_in(code: str) -> list[ast.Import | ast.ImportFrom]:
    return list(imports(ast.parse(code)))


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements below `tree`, except those for a type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.orelse, []))
        else:
            yield from imports(node)


def targets(statement: ast.Import | ast.ImportFrom, sources: dict[str, str]) -> Iterator[str]:
    """The modules that an import statement names: `from package import module` names the module."""
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            yield alias.name
        else:
            assert statement.module
            assert not statement.level, "imports are absolute"
            submodule = f"{statement.module}.{alias.name}"
            yield submodule if submodule in sources else statement.module


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def packages(module: str) -> Iterator[str]:
    """The packages around a module, whose __init__ runs before it."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def path_to(graph: Graph, start: str, room: str) -> list[str]:
    """How a module comes to import one of `room`: the chain of imports, or nothing."""
    chains = [[start]]
    seen = {start}
    for chain in chains:
        for module in sorted(graph.get(chain[-1], ())):
            if within(module, room):
                return [*chain, module]
            for step in (module, *packages(module)):
                if step in graph and step not in seen:
                    seen.add(step)
                    chains.append([*chain, step])
    return []


def crossings(graph: Graph) -> list[str]:
    """Every chain of imports that crosses a wall."""
    return [
        " > ".join(path)
        for room, forbidden in WALLS.items()
        for module in sorted(graph)
        if within(module, room)
        for other in forbidden
        if (path := path_to(graph, module, other))
    ]


def circles(graph: Graph) -> list[list[str]]:
    """Chains of modules that lead back to their start, one for each module in one."""
    return [path for module in sorted(graph) if (path := path_to_itself(graph, module))]


def path_to_itself(graph: Graph, module: str) -> list[str]:
    chains = [[module]]
    seen: set[str] = set()
    for chain in chains:
        for other in sorted(graph[chain[-1]]):
            if other == module:
                return [*chain, module]
            if other in graph and other not in seen:
                seen.add(other)
                chains.append([*chain, other])
    return []


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The code of our modules by their names."""
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


def test_nobody_crosses_a_wall(sources: dict[str, str]) -> None:
    assert not crossings(graph_of(sources))


def test_no_modules_import_each_other_in_a_circle(sources: dict[str, str]) -> None:
    assert not circles(graph_of(sources))


def test_model_files_alone_import_tritons_backend() -> None:
    speakers = {
        path.relative_to(ROOT).parts[0]
        for folder in ("blipstream", "build", "client", "deploy", "loadtest", "model_repository")
        for path in (ROOT / folder).rglob("*.py")
        if TRITON in {alias.name for each in imports_in(path.read_text()) for alias in each.names}
    }
    assert speakers == {"model_repository"}


@pytest.mark.parametrize(
    ("module", "line", "crossing"),
    [
        (
            "blipstream.images.pixels",
            "import blipstream.server.tls",
            "blipstream.images.pixels > blipstream.server.tls",
        ),
        ("blipstream.vision.vit", "from blipstream import serving", "blipstream.vision.vit > blipstream.serving"),
        (
            "blipstream.serving.metrics",
            "from blipstream.server import tls",
            "blipstream.serving.metrics > blipstream.server.tls",
        ),
        ("blipstream.server.tls", "def late():\n    import torch", "blipstream.server.tls > torch"),
        (
            "blipstream.server.tls",
            "if TYPE_CHECKING:\n    pass\nelse:\n    import torch",
            "blipstream.server.tls > torch",
        ),
        ("blipstream.serving.adapter", f"import {TRITON}", f"blipstream.serving.adapter > {TRITON}"),
        ("blipstream.weights", "import transformers", "blipstream.weights > transformers"),
        ("blipstream_client", "import blipstream.options", "blipstream_client > blipstream.options"),
        # through another module, and through the package around one
        (
            "blipstream.options",
            "import torch",
            "blipstream.server.tls > blipstream.errors > blipstream.options > torch",
        ),
        (
            "blipstream.text",
            "import blipstream.server.tls",
            "blipstream.decoding.engine > blipstream.text > blipstream.server.tls",
        ),
    ],
)
def test_a_crossing_is_found(sources: dict[str, str], module: str, line: str, crossing: str) -> None:
    changed = {"blipstream.errors": "import blipstream.options"} if module == "blipstream.options" else {}
    changed[module] = f"{sources[module]}\n{line}\n"
    assert crossing in crossings(graph_of(sources | changed))


def test_imports_for_a_type_checker_cross_nothing(sources: dict[str, str]) -> None:
    code = sources["blipstream.server.tls"] + "\nif TYPE_CHECKING:\n    import torch\nelse:\n    torch = None\n"
    assert not crossings(graph_of(sources | {"blipstream.server.tls": code}))


def test_a_circle_is_found(sources: dict[str, str]) -> None:
    code = sources["blipstream.errors"] + "\ndef late():\n    from blipstream import options\n"
    found = circles(graph_of(sources | {"blipstream.errors": code}))
    assert ["blipstream.errors", "blipstream.options", "blipstream.errors"] in found
