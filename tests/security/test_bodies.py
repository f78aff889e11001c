# SPDX-License-Identifier: Apache-2.0
"""Bodies that once ended the server, or that clients send because our documents say so: it lives and captions."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from blipstream.server.triton import TritonServer
from difficult_clients import post, post_chunks
from raw_requests import INFER_PATH, caption_body
from tests.conftest import SAMPLES

UNREADABLE = "500"  # Triton's status for JSON that it cannot parse


@pytest.fixture(autouse=True)
def _it_lives(server: TritonServer) -> Iterator[None]:
    before = server.pid
    yield
    server.check()
    assert server.pid == before


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("megabytes", [5, 31])
def test_an_image_that_curl_calls_a_form(server: TritonServer, samples: dict[str, str], megabytes: int) -> None:
    """The image is a JPEG file with random bytes behind it, which no decoder reads."""
    name, caption = next(iter(samples.items()))
    image = (SAMPLES / name).read_bytes()
    body, headers = caption_body(image + os.urandom(megabytes * 1_000_000 - len(image)))
    command = ["curl", "-s", "--noproxy", "*", "--data-binary", "@-", server.http_url + INFER_PATH]
    command += [f"-H{name}: {value}" for name, value in headers.items()]
    answer = json.loads(subprocess.run(command, input=body, capture_output=True, check=True).stdout)
    assert {output["name"]: output["data"] for output in answer["outputs"]}["caption"] == [caption]


def test_a_body_in_very_many_chunks(server: TritonServer) -> None:
    """Triton takes room on the stack for each chunk."""
    assert post_chunks(server.http_url, 700_000) == {UNREADABLE: 1}


def test_json_that_is_nested_deeply(server: TritonServer) -> None:
    """Triton takes room on the stack for each level."""
    headers = {"Content-Type": "application/json"}
    assert post(server.http_url, b"[" * 1_000_000, headers) == {UNREADABLE: 1}
