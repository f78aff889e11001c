# SPDX-License-Identifier: Apache-2.0
"""The README's requests, run as they stand but for the ports."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from blipstream.images.limits import DEFAULT_LIMITS
from blipstream.images.resize import DEFAULT_RESIZE_MODE
from blipstream.options import DecodingOptions
from blipstream.server.triton import TritonServer
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run_block(server: TritonServer, language: str, containing: str) -> str:
    """Run the one block of `language` that contains some words; what it prints."""
    (code,) = (code for kind, code in BLOCKS if kind == language and containing in code)
    code = code.replace("localhost:8001", server.grpc_url.removeprefix("grpc://"))
    code = code.replace("localhost:8000", server.http_url.removeprefix("http://"))
    command = [sys.executable, "-c", code] if language == "python" else ["sh", "-ec", code]
    environment = os.environ | {"BLIPSTREAM_URL": server.grpc_url}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_tritonclient_alone(server: TritonServer) -> None:
    assert run_block(server, "python", "from tritonclient.grpc") == "a book on a purple background\n"


def test_curl(server: TritonServer) -> None:
    assert '"data":["a book on a purple background"]' in run_block(server, "sh", "Inference-Header")


def test_json(server: TritonServer) -> None:
    assert '"data":["a book on a purple background"]' in run_block(server, "sh", '"data":["%s"]')


@pytest.mark.parametrize("page", ["README.md", "client/README.md", "deploy/README.md", "loadtest/README.md"])
def test_curl_says_what_it_sends(page: str) -> None:
    """Else it calls it a form, which Triton parses on the stack."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if re.search(r"\bcurl\b.* (-d|--data)", line):
            assert "Content-Type: application/" in line


def test_server_sent_events(server: TritonServer) -> None:
    events = run_block(server, "sh", "generate_stream").splitlines()
    pieces = [json.loads(event.removeprefix("data: ")) for event in events if event]
    assert "".join(piece["text"] for piece in pieces) == "a book on a purple background"
    assert pieces[-1]["finish_reason"] == "stop"


def test_streaming(server: TritonServer) -> None:
    assert run_block(server, "python", "client.stream") == "a book on a purple background"


def test_client_library(server: TritonServer) -> None:
    output = run_block(server, "python", "client.caption_many").splitlines()
    assert output[0].startswith("a book on a purple background -")
    assert "two-whales.jpg shows Caption(text='two whales on a purple background'" in output[1]
    assert output[2].startswith("README.md failed: image must be a JPEG")
    assert "a-unicorn.jpg shows" in output[3]


def test_command_line(server: TritonServer, samples: dict[str, str]) -> None:
    lines = run_block(server, "sh", "blipstream caption").splitlines()
    assert sorted(lines) == sorted(f"build/demo/samples/{name}: {caption}" for name, caption in samples.items())


@pytest.mark.parametrize("block", [code for kind, code in BLOCKS if kind == "sh" and "make " in code])
def test_make_targets_exist(block: str) -> None:
    for line in block.splitlines():
        command = line.partition("#")[0].split()
        done = subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_defaults() -> None:
    """The table has every option, and what it is if absent."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| \w+ \[1\] \|(?: (\S+?)(?:, off)?)? \|", README, re.MULTILINE)
    stated = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    assert stated.pop("image") == ""
    assert stated.pop("resize_mode") == f"`{DEFAULT_RESIZE_MODE}`"
    assert stated == {
        name: {"": "none"}.get(str(value), f"{value:g}" if isinstance(value, float) else str(value).lower())
        for name, value in asdict(DecodingOptions()).items()
    }


def test_figures() -> None:
    """What the README says of limits is what the code does."""
    assert DEFAULT_LIMITS.max_bytes == 32 * 2**20
    assert DEFAULT_LIMITS.max_pixels == 100 * 10**6
    assert "at most 32 MiB and 100 million pixels" in README


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
