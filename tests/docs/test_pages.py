# SPDX-License-Identifier: Apache-2.0
"""Links lead somewhere, paths exist, and the site builds."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.documents import LINK, ROOT, anchors, blocks, pages, prose, site

NAMES = [str(page.relative_to(ROOT)) for page in pages()]
GENERATED = re.compile(
    r"model_repository/encoder/1/tensorrt|model_repository/preprocess/configs/.*|loadtest/results/.+/.*"
)
FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))


@pytest.mark.parametrize("name", NAMES)
def test_links(name: str) -> None:
    page = ROOT / name
    for target in LINK.findall(prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("name", NAMES)
def test_paths(name: str) -> None:
    """What stands in code and looks like a path of this repository is one, from its root or beside the page."""
    page = ROOT / name
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", prose(page)):
        assert (ROOT / path).exists() or (page.parent / path).exists() or GENERATED.fullmatch(path), path


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    rooms = {f"blipstream/{path.parent.name}" for path in (ROOT / "blipstream").glob("*/__init__.py")}
    assert {folder for folder in folders | rooms if f"| `{folder}/` |" not in text} == set()


def test_the_site_builds(tmp_path: Path) -> None:
    """Without a warning, such as of a link or an anchor that leads nowhere."""
    mkdocs = Path(sys.executable).with_name("mkdocs")
    command = [str(mkdocs), "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert {path.relative_to(tmp_path).with_suffix("") for path in tmp_path.rglob("*.html")} >= {
        page.relative_to(ROOT / "docs").with_suffix("") for page in site() if page.name != "README.md"
    }
    for page in tmp_path.rglob(
        "*.html"
    ):  # GitHub takes a list without an empty line before it for one, mkdocs does not
        text = re.sub(r"<pre>.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"^(<p>)?(- |\d+\. |\|)", text, re.MULTILINE), page


def test_the_site_has_every_page_once() -> None:
    def leaves(node: object) -> list[str]:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
        return [str(node)] if children is None else [leaf for child in children for leaf in leaves(child)]

    settings = YAML(typ="safe", pure=True).load((ROOT / "mkdocs.yml").read_text())
    assert sorted(leaves(settings["nav"])) == sorted(str(page.relative_to(ROOT / "docs")) for page in site())


@pytest.mark.parametrize("name", NAMES)
def test_data_in_blocks_is_well_formed(name: str) -> None:
    for block in blocks(ROOT / name):
        if block.language == "yaml":
            assert YAML(typ="safe", pure=True).load(block.code)
        elif block.language == "json":
            assert json.loads(block.code)
        elif block.language == "toml":
            assert tomllib.loads(block.code)
        elif block.language == "mermaid":
            assert re.match(r"flowchart|sequenceDiagram", block.code)
            assert len(re.findall(r"^\s*subgraph ", block.code, re.MULTILINE)) == len(
                re.findall(r"^\s*end$", block.code, re.MULTILINE)
            )
        else:
            assert block.language in ("sh", "console", "python", "js"), f"{block}: nobody reads such a block"
