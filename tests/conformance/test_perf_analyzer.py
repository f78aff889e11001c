# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's perf_analyzer gets an answer to every request of the mix."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest

import perf_analyzer
from blipstream.server.triton import TritonServer
from blipstream_loadtest import mix
from blipstream_loadtest.options import MIX_FILE
from tests.conftest import ROOT

REQUESTS = 12


@pytest.fixture(scope="module")
def chosen() -> mix.Mix:
    return mix.load(MIX_FILE)


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return perf_analyzer.find()[0]
    except perf_analyzer.PerfAnalyzerError as exc:
        pytest.skip(str(exc))


def test_input_data(chosen: mix.Mix) -> None:
    steps = perf_analyzer.input_data(chosen, "beams")["data"]
    assert len(steps) == perf_analyzer.STEPS
    for step in steps:
        assert step["num_beams"] == {"content": [3], "shape": [1]}
        element = base64.b64decode(step["image"]["content"]["b64"])
        assert int.from_bytes(element[:4], "little") == len(element) - 4
        assert any(element[4:] in images for images in chosen.images.values())


@pytest.mark.parametrize(
    ("protocol", "kind"), [("grpc", "greedy"), ("grpc", "beams"), ("http", "prompt"), ("http", "sampling")]
)
@pytest.mark.usefixtures("program")
def test_every_request_is_answered(server: TritonServer, protocol: str, kind: str) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    command = [sys.executable, str(ROOT / "loadtest/perf_analyzer.py"), "--host", url, "--kind", kind, "--"]
    done = subprocess.run(
        [*command, "--concurrency-range", "2", "--request-count", str(REQUESTS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Request count: {REQUESTS}" in done.stdout
    for model in ("preprocess", "encoder", "decoder"):
        assert model in done.stdout


def test_mistakes() -> None:
    command = [sys.executable, str(ROOT / "loadtest/perf_analyzer.py")]
    done = subprocess.run([*command, "--kind", "absent"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no unary requests of kind 'absent': choose one of greedy, prompt, beams, sampling" in done.stderr
