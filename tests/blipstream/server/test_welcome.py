# SPDX-License-Identifier: Apache-2.0
"""The commands that the server greets with."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from blipstream.server.triton import TritonServer
from blipstream.server.welcome import curl
from tests.support.toy_models import write_repository


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_line(tmp_path: Path) -> None:
    image = tmp_path / "it's.jpg"
    image.write_bytes(bytes(range(256)) * 257)
    server = TritonServer(repository=write_repository(tmp_path / "models"), http_port=0, grpc_port=0, metrics_port=0)
    with server:
        line = curl(server.http_url, image, image.stat().st_size)
        assert "-H 'Content-Type: application/octet-stream'" in line  # Triton parses a form on the stack
        answer = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    assert json.loads(answer)["outputs"][0]["data"] == ["65792 bytes"]
