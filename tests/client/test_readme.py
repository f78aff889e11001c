# SPDX-License-Identifier: Apache-2.0
"""The README's examples run, and say what it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from blipstream.server.triton import TritonServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "client" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
CONSOLE = re.search(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

EXPECTED = [
    "a book on a purple background\n",
    "two-whales.jpg two whales on a purple background\n"
    "captions.json failed: image must be a JPEG.*\n"
    "a-unicorn.jpg a unicorn on a white background\n",
    "a book on a purple background\ntwo whales on a purple background\na unicorn on a white background\n",
    "a book on a purple background 7 stop\n",
    "whales\n",
    r"(-\d+\.\d\d .+\n){3}",
    "a book on a purple background\n",
    "True\n",
    "",  # captions.example does not exist
    "two whales on a purple background\nRefused to fetch .*not a public address.*\n",
    ".* openvino True\n",
]


def run(command: list[str], server: TritonServer, folder: Path, stdin: bytes = b"") -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client"), "BLIPSTREAM_URL": server.grpc_url}
    done = subprocess.run(command, cwd=folder, env=environment, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_examples(server: TritonServer, samples_folder: Path, number: int) -> None:
    assert len(EXAMPLES) == len(EXPECTED)
    program = EXAMPLES[number].replace("Client()", 'Client("grpc://localhost:8001")')
    program = program.replace("Client(max_side", 'Client("grpc://localhost:8001", max_side')
    program = program.replace(":8001", f":{server.grpc_port}").replace(":8000", f":{server.http_port}")
    if "ca.pem" in program:
        compile(program, "README.md", "exec")
        return
    printed = run([sys.executable, "-c", program], server, samples_folder)
    assert re.fullmatch(EXPECTED[number], printed), printed


def test_the_command_line(server: TritonServer, samples_folder: Path) -> None:
    assert CONSOLE is not None
    for session in CONSOLE[1].split("$ ")[1:]:
        line, expected = session.split("\n", 1)
        words, _, source = line.partition("<")
        stdin = (samples_folder / source.strip()).read_bytes() if source else b""
        command = [sys.executable, "-m", "blipstream_client", *shlex.split(words)[1:]]
        printed = run(command, server, samples_folder, stdin)
        if "--json" not in command:
            assert printed == expected
            continue
        found, promised = json.loads(printed), json.loads(expected)
        assert found["caption"] == promised["caption"]
        assert found.keys() == promised.keys()
        assert found["num_tokens"] == promised["num_tokens"]
        assert found["score"] == pytest.approx(promised["score"], abs=0.01)
