# SPDX-License-Identifier: Apache-2.0
"""The Makefile: what people give to make arrives as it is, a misspelt variable is refused, and all is listed."""

import os
import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "Makefile").read_text()
VERBS = re.findall(r"^VERBS := (.*)$", TEXT, re.MULTILINE)[0].split()


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make, as if these tests did not run under another."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--old-file=.venv/ready", *arguments]
    return subprocess.run(command, cwd=ROOT, env=alone | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["build", "serve", "loadtest", "tune"])
def test_any_path_is_one_word(target: str) -> None:
    path, checkpoint = """/srv/a b/ü"x'y;&""", "it's mine"
    done = make("-n", target, f"REPOSITORY={path}", f"CHECKPOINT={checkpoint}")
    words = shlex.split(done.stdout.replace("\\\n", " "))
    assert checkpoint in words, done.stderr
    assert {words[at + 1] for at, word in enumerate(words) if word == "--repository"} == {path}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "CHECKPOIN=x"], "no variable CHECKPOIN: did you mean CHECKPOINT?"),
        (["serve", "checkpoint=x"], "no variable checkpoint: did you mean CHECKPOINT?"),
        (["-n", "build", "serve", "HTTPPORT=1"], "no variable HTTPPORT: did you mean HTTP_PORT?"),
        (["demo", "CHECKPOINT=x"], "demo takes no CHECKPOINT: see make help"),
        (["it's=x"], "setup takes no it's: see make help"),
        (["sreve", "CHECKPOINT=x"], "no target sreve: did you mean serve?"),
        (["build", "load-test"], "no target load-test: did you mean loadtest?"),
        (["it's"], "no target it's: see make help"),
        (["serve", "HTTP_PORT="], "HTTP_PORT is empty: give it a value, or leave it out"),
        (["serve", "CHECKPOINT="], "CHECKPOINT is empty: give it a value, or leave it out"),
        (["build", "REPOSITORY="], "REPOSITORY is empty: give it a value, or leave it out"),
        (["loadtest", "USERS=4", "HOST= "], "HOST is empty: give it a value, or leave it out"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str) -> None:
    """Misspelt targets and variables, and empty ones, before anything runs."""
    done = make(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"Makefile:\d+: \*\*\* {re.escape(words)}\.  Stop\.\n", done.stderr), done.stderr
    assert len(done.stderr) <= 81


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "PYTHON=python3", "PIP_INDEX_URL=https://pypi.org/simple", "HF_HOME=/hub"],
        ["audit", "sbom", "AUDIT=--if-possible"],
        ["build", "serve", "HTTP_PORT=9000"],
        ["serve", "OPTIONS=", "PIP_INDEX_URL="],
        [".venv/ready"],
    ],
)
def test_known_variables(arguments: list[str]) -> None:
    done = make("-n", *arguments)
    assert done.returncode == 0, done.stderr


def test_variables_of_the_environment_are_not_refused() -> None:
    done = make("-n", "demo", CHECKPOIN="x", CHECKPOINT="y", HTTP_PORT="1")
    assert done.returncode == 0, done.stderr


def test_every_variable_that_a_recipe_reads_is_known() -> None:
    """What has no value in the Makefile itself comes from outside."""
    read = set(re.findall(r"\$\(([A-Z_0-9]+)\)", TEXT)) | set(re.findall(r"\$\(call option,([A-Z_0-9]+),", TEXT))
    assigned = set(re.findall(r"^(?:export )?([A-Z_0-9]+) *:?=", TEXT, re.MULTILINE))
    lists = re.findall(r"^\w+_TAKES? := (.*)$", TEXT.replace("\\\n", ""), re.MULTILINE)
    taken = {name for names in lists for name in names.split()}
    assert read - assigned - {"CURDIR", "MAKECMDGOALS", "MAKEFILE_LIST"} <= taken | {"PYTHON"}


@pytest.mark.parametrize("name", ["http", "grpc", "metrics", "health"])
def test_every_port_is_a_variable(name: str) -> None:
    """A message about a port names it."""
    words = shlex.split(make("-n", "serve", f"{name.upper()}_PORT=9000").stdout.replace("\\\n", " "))
    assert words[words.index(f"--{name}-port") + 1] == "9000"


def test_an_empty_checkpoint() -> None:
    """One of the environment is not taken for the default, either: the program refuses it."""
    words = shlex.split(make("-n", "build", CHECKPOINT="").stdout.replace("\\\n", " "))
    assert words[words.index("--checkpoint") + 1] == ""


def test_a_server_behind_tls_is_loaded_with_its_certificate() -> None:
    words = shlex.split(make("-n", "loadtest", "HOST=grpcs://a:1", "CA_FILE=a b.pem").stdout.replace("\\\n", " "))
    assert words[words.index("--ca-file") + 1] == "a b.pem"


@pytest.mark.parametrize("target", ["build", "serve"])
def test_each_adapter_is_an_option(target: str) -> None:
    words = shlex.split(make("-n", target, "ADAPTERS=fr=a;b ja=c").stdout.replace("\\\n", " "))
    assert [words[at + 1] for at, word in enumerate(words) if word == "--adapter"] == ["fr=a;b", "ja=c"]


def test_help_lists_every_verb() -> None:
    shown = make("help").stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    rows = re.findall(r"^  ([a-z-]+) +(.*)\n((?: {14}.*\n)*)", shown, re.MULTILINE)
    assert sorted(VERBS) == [verb for verb, _, _ in rows]
    assert all(len(text) > 10 for _, text, _ in rows)
    taken = {verb: names.split() for verb, _, names in rows}
    assert taken["build"] == ["CHECKPOINT", "PROCESSOR", "CONFIG", "REPOSITORY", "ADAPTERS"]
    assert set(taken["build"]) < set(taken["serve"])
    assert taken["lint"] == []


def test_recipes_are_quiet() -> None:
    """They say what they do in words, and make does not print their commands."""
    commands = re.findall(r"^\t(?!\t)(.)(?<!^\t )", re.sub(r"\\\n\t+", "", TEXT), re.MULTILINE)
    assert set(commands) == {"@"}
