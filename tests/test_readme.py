# SPDX-License-Identifier: Apache-2.0
"""What the README and the pages say, against what is so."""

import itertools
import json
import re
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

import blipstream_client
from blipstream import errors
from blipstream.images.limits import DEFAULT_LIMITS
from blipstream.images.resize import DEFAULT_RESIZE_MODE
from blipstream.options import DecodingOptions
from tests.support.documents import ROOT, Block, all_blocks, blocks, commands, text_of

README = ROOT / "README.md"
MOST_LINES = 120
DOCS = ROOT / "docs"
SYSTEMS = {
    "transformers": "transformers",
    "the bare engine": "engine",
    "Blipstream through Triton": "blipstream-triton",
}
FIGURES = json.loads((ROOT / "loadtest" / "results" / "bench.json").read_text())


def words_of(page: Path) -> str:
    """A page's text, each run of spaces and line breaks as one space."""
    return " ".join(page.read_text(encoding="utf-8").split())


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_ci_passes_what_the_readme_tells() -> None:
    """Whoever follows the README runs what must pass before a change lands."""
    told = {tuple(words) for block in blocks(README) if block.language == "sh" for words in commands(block.code)}
    run = [tuple(words) for words in commands((ROOT / ".ci" / "run").read_text()) if words[0] == "make"]
    assert ("make", "test") in run
    assert {tuple(word for word in words if "=" not in word) for words in run} <= told


def test_options_table() -> None:
    """It has every option, and what it is if absent."""
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| \w+ \[1\] \|(?: (\S+?)(?:, off)?)? \|", page, re.MULTILINE)
    stated = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    assert stated.pop("image") == ""
    assert stated.pop("resize_mode") == f"`{DEFAULT_RESIZE_MODE}`"
    assert stated == {
        name: {"": "none"}.get(str(value), f"{value:g}" if isinstance(value, float) else str(value).lower())
        for name, value in asdict(DecodingOptions()).items()
    }


@pytest.mark.parametrize("name", ["images.md", "security.md"])
def test_limits_of_images(name: str) -> None:
    """What the pages say of limits is what the code does."""
    assert DEFAULT_LIMITS.max_bytes == 32 * 2**20
    assert DEFAULT_LIMITS.max_pixels == 100 * 10**6
    page = words_of(DOCS / name)
    assert re.search(r"at most 32 MiB( \(after base64\),)? (and )?100 million pixels", page)
    assert f"{DEFAULT_LIMITS.max_side:,} pixels a side" in page


def test_times_of_slow_images() -> None:
    limits, page = DEFAULT_LIMITS, words_of(DOCS / "security.md")
    assert (
        f"longer than {limits.seconds:g} second, plus {limits.seconds_for_pixels:g} seconds for 100 million pixels and "
        f"{limits.seconds_for_bytes:g} for 32 MiB" in page
    )
    most = limits.budget(limits.max_bytes, limits.max_pixels)
    assert f"up to {most:g} seconds of a core" in page


@pytest.mark.parametrize("strategy", ["greedy", "3 beams", "5 beams"])
def test_benchmark_table(strategy: str) -> None:
    """The page's figures are those of the committed run."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    header, _, *rows = re.findall(r"^\|(.*)\|$", page[page.index("| captions a second") :], re.MULTILINE)[:8]
    column = [cell.strip() for cell in header.split("|")].index(strategy)
    stated = {cells[0].strip(): cells[column].strip() for cells in (row.split("|") for row in rows)}
    name = strategy.replace(" beams", "").replace("3", "beam3").replace("5", "beam5")
    measured = {
        (row["system"], row["dtype"]): row["images_per_s"] for row in FIGURES["rows"] if row["strategy"] == name
    }
    assert stated == {
        f"{words}, {dtype}": f"{measured[system, dtype]:.2f}"
        for words, system in SYSTEMS.items()
        for dtype in ("f32", "bf16")
    }


def test_benchmark_versions() -> None:
    """They stand beside the figures."""
    page, versions = words_of(DOCS / "performance.md"), FIGURES["versions"]
    assert f"torch {versions['torch'].partition('+')[0]}, transformers {versions['transformers']}" in page
    assert f"OpenVINO {versions['openvino']}, tritonserver {versions['tritonserver']}" in page


def test_codes_of_errors() -> None:
    """The pages have each code that a client, or a request over HTTP, may meet."""
    rows = re.findall(
        r"^\| `(\w+)`(?:, a kind of `\w+`)? \| `(\w+)` \|", (DOCS / "client.md").read_text(), re.MULTILINE
    )
    assert {name: getattr(blipstream_client, name).code for name, _ in rows} == dict(rows)
    kinds = [getattr(blipstream_client, name) for name in blipstream_client.__all__]
    ours = [kind.__name__ for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseException)]
    assert sorted(name for name, _ in rows) == sorted(set(ours) - {"BlipstreamError"})
    table = re.findall(r"^\| `(\w+)` \|[^|]*\| \d+ \| (\w+) \|", (DOCS / "http-and-grpc.md").read_text(), re.MULTILINE)
    raised: list[type[errors.BlipstreamError]] = [errors.BlipstreamError, errors.InvalidInput, errors.InvalidImage]
    raised += [errors.Overloaded, errors.Stopping, errors.TimedOut, errors.Gone, errors.BackendDied]
    assert dict(table) == {kind.code: kind.status.replace("INVALID_ARG", "INVALID_ARGUMENT") for kind in raised}


def wheels() -> dict[str, Path]:
    """What `make wheels` makes, and the project that each is made of."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == blipstream_client.__version__
    names = {"blipstream": ROOT, "blipstream_client": ROOT / "client"}
    return {f"dist/{name}-{version}-py3-none-any.whl": project for name, project in names.items()}


@pytest.mark.parametrize("block", [block for block in all_blocks("sh") if "pip install" in block.code], ids=str)
def test_pip_installs_what_is_there(block: Block) -> None:
    """A wheel or a folder of this repository, and an extra that it has."""
    for words in commands(block.code):
        if words[:2] == ["pip", "install"]:
            for word in itertools.takewhile(lambda each: not each.startswith("--"), words[2:]):
                ((name, extra),) = re.findall(r"^([\w./-]+)(?:\[([\w-]+)\])?$", word)
                project = ({"blipstream": ROOT} | wheels()).get(name, ROOT / name)
                extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                assert not extra or extra in extras


def test_extras() -> None:
    """Each extra that a page names is one of its package."""
    for name, project in (("blipstream", ROOT), ("blipstream-client", ROOT / "client")):
        extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = set(re.findall(rf"(?<![\w-]){name}\[([\w-]+)\]", text_of("README.md", "docs")))
        assert named <= extras.keys()
        assert named
