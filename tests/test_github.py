# SPDX-License-Identifier: Apache-2.0
"""The workflow and the templates that GitHub reads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deployment import load_yaml
from tests.support.documents import ROOT

FOLDER = ROOT / ".github"
SCHEMAS = {
    "workflows/ci.yml": "github-workflows",
    "ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    "ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    "ISSUE_TEMPLATE/config.yml": "github-issue-config",
}
WORKFLOW = (FOLDER / "workflows" / "ci.yml").read_text()


def test_every_file_has_a_schema() -> None:
    assert set(SCHEMAS) == {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yml")}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [program, "--builtin-schema", f"vendor.{SCHEMAS[name]}", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_what_must_pass() -> None:
    (job,) = load_yaml(WORKFLOW)["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_actions_are_pinned_by_their_commits() -> None:
    """A tag may name another tomorrow."""
    used = re.findall(r"uses: (\S+)", WORKFLOW)
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", each) for each in used)


def test_it_may_write_nothing() -> None:
    assert load_yaml(WORKFLOW)["permissions"] == {"contents": "read"}
