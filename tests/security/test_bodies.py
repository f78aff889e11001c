# SPDX-License-Identifier: Apache-2.0
"""Bodies that once ended the server, or that a client sends because its documents say so: it lives and captions."""

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable

import pytest

from blipstream.server.triton import TritonServer
from tests.conftest import SAMPLES

PATH = "/v2/models/caption/infer"


@pytest.fixture(autouse=True)
def _it_lives(server: TritonServer) -> Iterable[None]:
    before = server.pid
    yield
    server.check()
    assert server.pid == before


def post(server: TritonServer, body: Iterable[bytes], *headers: str) -> bytes:
    """The status line of the answer to pieces of a body."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=120) as connection:
        connection.sendall("\r\n".join([f"POST {PATH} HTTP/1.1", "Host: here", *headers, "", ""]).encode())
        for piece in body:
            connection.sendall(piece)
        return connection.makefile("rb").readline()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("megabytes", [5, 31])
def test_an_image_that_curl_calls_a_form(server: TritonServer, samples: dict[str, str], megabytes: int) -> None:
    """Its first bytes are a JPEG file, and what follows is not looked at."""
    name, caption = next(iter(samples.items()))
    image = (SAMPLES / name).read_bytes()
    image += os.urandom(megabytes * 1_000_000 - len(image))
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 4 + len(image)}}]}).encode()
    command = ["curl", "-s", "--noproxy", "*", "--data-binary", "@-"]
    command += ["-H", f"Inference-Header-Content-Length: {len(header)}", server.http_url + PATH]
    body = header + struct.pack("<I", len(image)) + image
    answer = json.loads(subprocess.run(command, input=body, capture_output=True, check=True).stdout)
    assert {output["name"]: output["data"] for output in answer["outputs"]}["caption"] == [caption]


def test_a_body_in_very_many_chunks(server: TritonServer) -> None:
    """Each takes room on the stack."""
    pieces = [b"1\r\n{\r\n" * 10_000] * 70
    status = post(server, [*pieces, b"0\r\n\r\n"], "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert status.startswith(b"HTTP/1.1 500 ")  # as Triton calls JSON that it cannot parse


def test_json_that_is_nested_deeply(server: TritonServer) -> None:
    body = b"[" * 1_000_000
    status = post(server, [body], "Content-Type: application/json", f"Content-Length: {len(body)}")
    assert status.startswith(b"HTTP/1.1 500 ")
