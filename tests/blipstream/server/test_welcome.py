# SPDX-License-Identifier: Apache-2.0
"""What the server greets with."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from blipstream.command_line import command
from blipstream.config import CONFIG_NAME
from blipstream.server.triton import TritonServer
from blipstream.server.welcome import PHOTOGRAPHS, curl, welcome
from tests.support.toy_models import write_repository


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_line(tmp_path: Path) -> None:
    image = tmp_path / "it's.jpg"
    image.write_bytes(bytes(range(256)) * 257)
    server = TritonServer(repository=write_repository(tmp_path / "models"), http_port=0, grpc_port=0, metrics_port=0)
    with server:
        line = curl(server.http_url, image)
        assert "-H 'Content-Type: application/json'" in line  # Triton parses a form on the stack
        answer = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    sent = f"data:image/jpeg;base64,{base64.b64encode(image.read_bytes()).decode()}"
    assert json.loads(answer)["caption"] == f"{len(sent)} bytes"


def served(folder: Path, checkpoint: str) -> TritonServer:
    """A server, not started, of a repository that says what it was built from."""
    (folder / "decoder/1/artifact").mkdir(parents=True)
    (folder / "decoder/1/artifact" / CONFIG_NAME).write_text(json.dumps({"checkpoint": checkpoint, "revision": "1"}))
    return TritonServer(folder)


def test_the_demo_says_what_it_knows(tmp_path: Path) -> None:
    said = welcome(served(tmp_path, "emoji-demo"), 8003)
    assert "knows scenes of emoji and nothing else" in said
    assert f"  {command('serve', PHOTOGRAPHS)}\n" in said


def test_other_checkpoints_say_nothing_of_it(tmp_path: Path) -> None:
    assert "emoji" not in welcome(served(tmp_path, PHOTOGRAPHS), 8003)


def test_lines_fit_a_terminal(tmp_path: Path) -> None:
    lines = welcome(served(tmp_path, "emoji-demo"), 8003).splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("  "))  # commands to be copied are


def test_the_usual_address_need_not_be_said(tmp_path: Path) -> None:
    server = served(tmp_path, "x")
    assert "--url" not in welcome(server, 8003)
    server.grpc_port = 9001
    assert " --url grpc://127.0.0.1:9001\n" in welcome(server, 8003)
