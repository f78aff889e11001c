# SPDX-License-Identifier: Apache-2.0
"""The code of the documents: what can run here runs against a real server, and of the rest every word exists."""

import doctest
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from PIL import Image

from blipstream.adapters import FOLDER_NAME, AdapterConfig
from blipstream.config import CheckpointConfig
from blipstream.files import DEMO_RETRIEVAL_CHECKPOINT
from blipstream.server import command as serve
from blipstream.server.triton import TritonServer
from blipstream_build.build import build
from tests.conftest import CHECKPOINT, ROOT, SAMPLES
from tests.support.adapters import AdaptedReference
from tests.support.documents import Block, all_blocks, commands, sessions
from tests.support.programs import NODE

BIN = Path(sys.executable).parent
FIRST_CAPTION = "a book on a purple background"
NOWHERE = "captions.example"  # no host of this name exists
ELSEWHERE = re.compile(
    rf"{NOWHERE}|^(import|from) (lancedb|qdrant_client)|peft_model", re.MULTILINE
)  # what is not here
OTHER_PROGRAMS = {  # of the system, of Docker and Kubernetes, and NVIDIA's
    *("cp", "curl", "docker", "echo", "export", "find", "install", "jq", "kubectl", "nginx", "openssl", "pip"),
    *("nvidia-cuda-mps-control", "polygraphy", "printf", "sed", "sh", "trtexec", "umask"),
}


def asks_the_server(block: Block) -> bool:
    """Whether a block of shell asks the server that the tests have, and does nothing else."""
    code = re.sub(r"(^|\s)#.*", "", block.code)
    asks = re.search(r"\bcurl\b[^|]* localhost:800[01]/|\bblipstream caption |/python examples/", code, re.DOTALL)
    return bool(asks) and not re.search(rf"\b(make|docker|kubectl|sudo|pip|{NOWHERE})\b", code)


PYTHON = all_blocks("python")
JAVASCRIPT = all_blocks("js")
SHELL = all_blocks("sh")
ASKING = [block for block in SHELL if asks_the_server(block)]
SESSIONS = [
    pytest.param(command, printed, id=f"{block} {command}")
    for block in all_blocks("console")
    for command, printed in sessions(block.code)
]
COMMANDS = [
    pytest.param(words, id=f"{block} {' '.join(words)}")
    for block in SHELL
    if block not in ASKING
    for words in commands(block.code)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the documents' file names lead."""
    shutil.copytree(SAMPLES, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def matching_server(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real Triton that serves the demo's two checkpoints."""
    repository = shutil.copytree(artifacts, tmp_path_factory.mktemp("matching") / "repository")
    build(str(DEMO_RETRIEVAL_CHECKPOINT), "auto", repository)
    server = TritonServer(repository=repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0)
    with server as running:
        yield running


@pytest.fixture(scope="module")
def adapted_server(server: TritonServer, artifacts: Path) -> Iterator[TritonServer]:
    """The usual server, with an adapter as long as the fixture lasts."""
    folder = artifacts / "decoder/1" / FOLDER_NAME / "fr"
    AdaptedReference(CHECKPOINT, 1).save_adapter(folder, CheckpointConfig.load(artifacts / "decoder/1/artifact"))
    replace(AdapterConfig.load(folder), language="fr", metrics={"exact": 0.97}).save(folder)
    yield server
    shutil.rmtree(folder)


def run(server: TritonServer, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A program with the server's ports instead of the usual ones; both of its outputs as one."""
    words = [re.sub(r":8001\b", f":{server.grpc_port}", word) for word in command]
    words = [re.sub(r":8000\b", f":{server.http_port}", word) for word in words]
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = os.environ | {"BLIPSTREAM_URL": server.grpc_url, "PATH": path, "TQDM_DISABLE": "1"}
    return subprocess.run(
        words, cwd=folder, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
    )


PROGRAMS = {
    "python": [sys.executable, "-c"],
    "js": [str(NODE), "--input-type=module", "--eval"],
    "sh": ["sh", "-ec"],
}


def run_block(server: TritonServer, folder: Path, block: Block) -> str:
    """What a block prints. The README's and the examples' names are those of a checkout."""
    in_checkout = block.page.parent == ROOT or {ROOT / "examples", ROOT / "build"} & {*block.page.parents}
    done = run(server, ROOT if in_checkout else folder, *PROGRAMS[block.language], block.code)
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_printed(promised: str, printed: str) -> None:
    """`...` stands for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(promised, printed, flags), printed


def block_with(words: str, page: str) -> Block:
    """The one block of a page that contains some words."""
    (found,) = (block for block in PYTHON + JAVASCRIPT + SHELL if words in block.code and block.page == ROOT / page)
    return found


def server_of(request: pytest.FixtureRequest, block: Block) -> TritonServer:
    """A server that has what the block asks for."""
    others = {"matching.md": "matching_server", "reranking.md": "matching_server", "adapters.md": "adapted_server"}
    server: TritonServer = request.getfixturevalue(others.get(block.page.name, "server"))
    return server


@pytest.mark.parametrize("block", [block for block in PYTHON if not ELSEWHERE.search(block.code)], ids=str)
def test_python_runs(request: pytest.FixtureRequest, folder: Path, block: Block) -> None:
    server = server_of(request, block)
    assert block.printed is not None or block.page.name == "README.md", "a `text` block must say what this prints"
    printed = run_block(server, folder, block)
    check_printed(block.printed or printed, printed)


@pytest.mark.parametrize("block", [block for block in PYTHON if ELSEWHERE.search(block.code)], ids=str)
def test_python_is_python(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize("block", JAVASCRIPT, ids=str)
def test_javascript_runs(server: TritonServer, folder: Path, block: Block) -> None:
    printed = run_block(server, folder, block)
    assert FIRST_CAPTION in printed
    check_printed(block.printed or printed, printed)


@pytest.mark.parametrize("block", ASKING, ids=str)
def test_shell_runs(request: pytest.FixtureRequest, folder: Path, block: Block) -> None:
    printed = run_block(server_of(request, block), folder, block)
    whole = FIRST_CAPTION in printed or "generate_stream" in block.code or '{"error":' in str(block.printed)
    assert whole or re.search("/(match|adapters)/generate", block.code)  # which has no caption
    check_printed(block.printed or printed, printed)


@pytest.mark.parametrize(("command", "printed"), SESSIONS)
def test_console_prints_what_is_beneath(server: TritonServer, folder: Path, command: str, printed: str) -> None:
    check_printed(printed, run(server, folder, "sh", "-c", command).stdout)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_is_shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_exist(words: list[str]) -> None:
    """Targets of make, our programs and scripts, and each of their flags."""
    program, *arguments = words
    name = program.removeprefix(".venv/bin/")
    if name == "make":
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif name == "blipstream":
        verbs = arguments[: 2 if arguments[0] in ("proxy", "adapter") else 1]
        check_flags(arguments[len(verbs) :], help_of(*verbs))
    elif name == "python" and arguments[0] == "-m":
        assert arguments[1] == "blipstream.server"
        check_flags(arguments[2:], help_text(serve.main))
    elif name == "python":
        script = ROOT / arguments[0]
        assert script.is_file() or (script / "__main__.py").is_file()
        if "first_contact" in arguments[0]:  # it imports the standard library alone
            command = [sys.executable, str(script), "--help"]
            check_flags(arguments[1:], subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        elif any(word.startswith("-") for word in arguments):
            check_flags(arguments[1:], help_text(importlib.import_module(script.stem).main))
    elif program.startswith(".venv/bin/"):
        assert (BIN / name).exists()
    else:
        assert program in OTHER_PROGRAMS


def check_flags(arguments: list[str], text: str) -> None:
    """Each flag before `--` is one that a program's help names."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for word in ours:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}\b", text), f"there is no {word}"


@functools.cache
def help_of(*verbs: str) -> str:
    done = subprocess.run([BIN / "blipstream", *verbs, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def help_text(command: click.Command) -> str:
    return command.get_help(click.Context(command, **command.context_settings))


@pytest.mark.parametrize("block", all_blocks("sh", "console"), ids=str)
def test_curl_says_what_it_sends(block: Block) -> None:
    """Else it calls it a form, which Triton parses on the stack."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if re.search(r"\bcurl\b.* (-d|--data)", line):
            assert "Content-Type: application/" in line


@pytest.mark.parametrize("block", all_blocks("sh", "console"), ids=str)
def test_a_silent_curl_says_why_it_fails(block: Block) -> None:
    assert not re.search(r"\bcurl\b.* -s(?!S)", block.code)


def test_the_readmes_command_line(server: TritonServer, folder: Path, samples: dict[str, str]) -> None:
    lines = run_block(server, folder, block_with("blipstream caption", "README.md")).splitlines()
    assert sorted(lines) == sorted(f"build/demo/samples/{name}: {caption}" for name, caption in samples.items())


def test_the_readmes_python(server: TritonServer, folder: Path) -> None:
    printed = run_block(server, folder, block_with("client.stream", "README.md"))
    assert printed == f"{FIRST_CAPTION} 7\ntwo whales on a purple background"


@pytest.mark.parametrize("words", ["Inference-Header", '"data":["%s"]'])
def test_curl(server: TritonServer, folder: Path, words: str) -> None:
    printed = run_block(server, folder, block_with(words, "docs/http-and-grpc.md"))
    assert f'"data":["{FIRST_CAPTION}"]' in printed


def test_curl_sends_a_large_image(server: TritonServer, folder: Path) -> None:
    """20 MB, which are no argument of a program."""
    Image.new("RGB", (2600, 2600)).save(folder / "a-book.jpg", "BMP")
    assert (folder / "a-book.jpg").stat().st_size > 20_000_000
    assert '{"caption":"' in run_block(server, folder, block_with('"num_beams": 3}', "docs/http-and-grpc.md"))


def test_the_code_of_an_error(server: TritonServer, folder: Path) -> None:
    """The page's regular expression finds it."""
    (expression,) = re.findall(r"`(\S+ \S+)` finds the code", (ROOT / "docs" / "http-and-grpc.md").read_text())
    printed = run_block(server, folder, block_with('"num_beams": 99', "docs/http-and-grpc.md"))
    found = re.search(expression, json.loads(printed)["error"])
    assert found
    assert found.groups() == ("invalid_input", "num_beams must be between 1 and 10, not 99")


def test_server_sent_events(server: TritonServer, folder: Path) -> None:
    events = run_block(server, folder, block_with("generate_stream", "docs/streaming.md")).splitlines()
    pieces = [json.loads(event.removeprefix("data: ")) for event in events if event]
    assert "".join(piece["text"] for piece in pieces) == FIRST_CAPTION
    assert pieces[-1]["finish_reason"] == "stop"


def test_make_takes_any_word() -> None:
    """The documents set variables of make that it knows."""
    known = (ROOT / "Makefile").read_text()
    for block in SHELL:
        for words in commands(block.code):
            for name in (word.partition("=")[0] for word in words[1:] if words[0] == "make" and "=" in word):
                assert re.search(rf"\b{name}\b", known), f"{block}: {shlex.join(words)}"
