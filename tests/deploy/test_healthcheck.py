# SPDX-License-Identifier: Apache-2.0
"""The images' health check, as Docker runs it."""

import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from blipstream.server.triton import TritonServer
from tests.conftest import ROOT
from tests.support.tiny_triton import Answer, Inputs, Refusal, TinyTriton, size_of_image, tiny_triton


def healthcheck(url: str, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "deploy/healthcheck.py", f"--url={url}", f"--timeout={timeout}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def executions(server: TritonServer) -> int:
    """How often the decoder ran."""
    metrics = urllib.request.urlopen(server.metrics_url).read().decode()
    (count,) = re.findall(r'^nv_inference_exec_count\{model="decoder",version="1"\} (\d+)$', metrics, re.MULTILINE)
    return int(count)


@pytest.fixture
def tiny() -> Iterator[TinyTriton]:
    with tiny_triton() as server:
        yield server


def test_asks_the_models_each_time(server: TritonServer) -> None:
    for _ in range(2):
        before = executions(server)
        done = healthcheck(server.grpc_url, 30)
        assert (done.returncode, done.stderr) == (0, "")
        assert executions(server) == before + 1


def test_no_server() -> None:
    done = healthcheck("grpc://127.0.0.1:1", 1)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No Triton server answers at grpc://127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_ready_and_yet_failing(tiny: TinyTriton) -> None:
    def fail(_: Inputs) -> Answer:
        raise Refusal(grpc.StatusCode.INTERNAL, "no words")

    tiny.answer = fail
    done = healthcheck(tiny.url("grpc"), 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no words" in done.stderr


def test_an_empty_caption_is_none(tiny: TinyTriton) -> None:
    tiny.answer = lambda _: ("", 0.0, 1)
    done = healthcheck(tiny.url("grpc"), 30)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Error: the caption is empty\n")


def test_a_full_queue_is_no_fault_while_it_moves(tiny: TinyTriton) -> None:
    refusals = iter([True, True])

    def answer(inputs: Inputs) -> Answer:
        if next(refusals, False):
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        return size_of_image(inputs)

    tiny.answer = answer
    assert healthcheck(tiny.url("grpc"), 30).returncode == 0
    assert not list(refusals)


def test_a_queue_that_stays_full_is_one(tiny: TinyTriton) -> None:
    def refuse(_: Inputs) -> Answer:
        raise Refusal(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    tiny.answer = refuse
    assert healthcheck(tiny.url("grpc"), 1).returncode == 1


def test_a_server_without_a_captioner_is_asked_for_a_match(matching_artifacts: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(matching_artifacts, tmp_path / "models")
    for model in ("encoder", "decoder"):
        for artifact in (repository / model / "1").glob("*/"):
            shutil.rmtree(artifact)
    with TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server:
        done = healthcheck(server.grpc_url, 30)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"match: [01]\.\d\d\n", done.stdout)
