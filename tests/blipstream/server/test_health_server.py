# SPDX-License-Identifier: Apache-2.0
"""The supervisor's endpoint, asked by the health check as a probe asks it."""

import resource
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from blipstream.errors import ServerError
from blipstream.server import health_server as module
from blipstream.server.health import Health
from blipstream.server.health_server import MAX_CONNECTIONS, HealthServer
from tests.conftest import ROOT
from tests.support.waiting import wait_until


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


def ask(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=30) as answer:
        return int(answer.status)


def test_probes_ask_no_proxy(endpoint: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert probe(endpoint.port, "live") == (0, "the server starts\n")


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_answers_however_many_clients_are_connected(endpoint: HealthServer) -> None:
    before = files()
    with ExitStack() as stack:
        for _ in range(3 * MAX_CONNECTIONS):
            other = stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port)))
            with suppress(OSError):  # the server has closed the connection
                other.send(b"G")
        assert ask(endpoint.port) == 200
        wait_until(lambda: files() - before <= 4 * MAX_CONNECTIONS)  # three quarters are the test's own
    assert ask(endpoint.port) == 200


def test_a_request_must_come_in_time(endpoint: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a byte comes now and then."""
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", endpoint.port)) as slow:
        slow.settimeout(0.05)

        def was_closed() -> bool:
            try:
                slow.send(b"x")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(was_closed)


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"POST /livez HTTP/1.1\r\n\r\n", b"x" * (1 << 20), b""])
def test_odd_requests(endpoint: HealthServer, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port)) as odd, suppress(OSError):
        odd.sendall(data)
        odd.shutdown(socket.SHUT_WR)
        assert b" 200 " not in odd.makefile("rb").read()
    assert ask(endpoint.port) == 200


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # standard input, output and error
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_goes_on_after_no_more_files_could_be_opened(
    endpoint: HealthServer, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as early:
        with no_more_files():
            early.connect(("127.0.0.1", endpoint.port))
            wait_until(lambda: "Too many open files" in caplog.text)
        early.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        assert b" 200 OK" in early.recv(1000)


def test_no_supervisor() -> None:
    status, text = probe(1, "live")
    assert status == 1
    assert text.startswith("Error: no supervisor answers at http://127.0.0.1:1/livez: ")


def test_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ServerError, match=f"health port {port} cannot be opened .* choose another with --health-po"
        ):
            HealthServer(Health(), "127.0.0.1", port)
