# SPDX-License-Identifier: Apache-2.0
"""The supervisor's endpoint, asked by the health check as a probe asks it."""

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from blipstream.errors import ServerError
from blipstream.health import BLIND_SECONDS, DEAD_SECONDS, Health, HealthServer
from tests.conftest import ROOT


@pytest.fixture
def endpoint() -> Iterator[HealthServer]:
    with HealthServer(Health(), "127.0.0.1", 0) as server:
        yield server


def probe(port: int, level: str) -> tuple[int, str]:
    command = [sys.executable, "deploy/healthcheck.py", f"--level={level}", f"--health-url=http://127.0.0.1:{port}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_probes(endpoint: HealthServer) -> None:
    assert probe(endpoint.port, "live") == (0, "the server starts\n")
    assert probe(endpoint.port, "ready") == (1, "Error: the server starts\n")
    endpoint.health.ready = True
    endpoint.health.why = "it is ready"
    assert probe(endpoint.port, "ready") == (0, "it is ready\n")


def test_no_supervisor() -> None:
    status, text = probe(1, "live")
    assert status == 1
    assert text.startswith("Error: no supervisor answers at http://127.0.0.1:1/livez: ")


def test_captioning_means_ready_and_captions() -> None:
    health = Health()
    assert health.page("/healthz")[0] == 503
    health.note_caption()
    assert health.page("/healthz")[0] == 503
    health.ready = True
    assert health.page("/healthz") == (200, "application/json", '{"ok": true, "why": "it captions", "restarts": 0}\n')
    assert health.page("/elsewhere")[0] == 404


def test_a_supervisor_that_stands_still() -> None:
    """It may be busy for as long as it said. Soon after, it knows nothing of captions; much later, it is dead."""
    health = Health(ready=True)
    health.note_caption()

    def answers() -> list[int]:
        return [health.page(path)[0] for path in ("/livez", "/readyz", "/healthz")]

    health.beat(300)
    assert answers() == [200, 200, 200]
    health.beat(-BLIND_SECONDS)
    assert answers() == [200, 200, 503]
    assert "the supervisor has stood still for 10 seconds: restart it" in health.page("/healthz")[2]
    assert "blipstream_supervisor_captioning 0" in health.metrics()
    health.beat(-DEAD_SECONDS)
    assert answers() == [503, 200, 503]
    health.beat()
    assert answers() == [200, 200, 200]


def test_figures() -> None:
    health = Health(ready=True, captioning=True, last_caption=12.5, failing="caption_stream", restarts=Counter(hung=2))
    lines = health.metrics().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "blipstream_supervisor_captioning 1",
        'blipstream_supervisor_failing{model="caption"} 0',
        'blipstream_supervisor_failing{model="caption_stream"} 1',
        "blipstream_supervisor_last_caption_timestamp_seconds 12.500",
        'blipstream_supervisor_restarts_total{reason="hung"} 2',
    ]


def test_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ServerError, match=f"health port {port} cannot be opened .* choose another with --health-po"
        ):
            HealthServer(Health(), "127.0.0.1", port)
