# SPDX-License-Identifier: Apache-2.0
"""The Makefile: what people give to make arrives as it is, and `make help` lists every target."""

import os
import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("target", ["build", "serve", "loadtest", "tune"])
def test_any_path_is_one_word(target: str) -> None:
    path, checkpoint = """/srv/a b/ü"x'y;&""", "it's mine"
    command = ["make", "-n", target, f"REPOSITORY={path}", f"CHECKPOINT={checkpoint}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = shlex.split(shown.replace("\\\n", " "))
    assert words[words.index("--checkpoint") + 1] == checkpoint
    assert {words[at + 1] for at, word in enumerate(words) if word == "--repository"} == {path}


def test_help_lists_every_verb() -> None:
    (verbs,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # tests run under make
    shown = subprocess.run(["make", "help"], cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert sorted(verbs.split()) == [verb for verb, _ in lines]
    assert all(len(text) > 10 for _, text in lines)
