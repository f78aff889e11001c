# SPDX-License-Identifier: Apache-2.0
"""The server's statistics, behind a proxy that asks for a key."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from blipstream_loadtest.collector import Statistics, Unavailable

KEY = "Bearer secret"
MODEL = {"name": "caption", "inference_stats": {"success": {"count": 3, "ns": 5}}}


class Server:
    """Answers who sends the key, over both protocols. /elsewhere is another host, which gets no key."""

    def __init__(self) -> None:
        keys: list[str | None] = []
        self.elsewhere = keys
        self.redirects = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key = self.headers["authorization"]
                if self.path == "/elsewhere":
                    keys.append(key)
                elif outer.redirects:
                    self.send_response(302)
                    self.send_header("Location", "/elsewhere")
                    self.end_headers()
                    return
                self.send_response(200 if key == KEY else 401)
                self.end_headers()
                self.wfile.write(json.dumps({"version": "2.51.0", "model_stats": [MODEL]}).encode())

            def log_message(self, *_: object) -> None:
                pass

        def check(context: grpc.ServicerContext) -> None:
            if dict(context.invocation_metadata()).get("authorization") != KEY:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "the key is missing or wrong")

        class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
            def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002, N802
                check(context)
                return service_pb2.ServerMetadataResponse(version="2.51.0")

            def ModelStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002, N802
                check(context)
                answer = service_pb2.ModelStatisticsResponse()
                model = answer.model_stats.add(name="caption")
                model.inference_stats.success.count, model.inference_stats.success.ns = 3, 5
                return answer

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.grpc = grpc.server(ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), self.grpc)
        ports = {"http": self.http.server_address[1], "grpc": self.grpc.add_insecure_port("127.0.0.1:0")}
        self.urls = {scheme: f"{scheme}://127.0.0.1:{port}" for scheme, port in ports.items()}
        self.grpc.start()

    def stop(self) -> None:
        self.grpc.stop(grace=None).wait()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_key_is_sent(server: Server, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLIPSTREAM_API_KEY", raising=False)
    with pytest.raises(Unavailable, match=r"gave no statistics: .*(the key is missing|401)"):
        Statistics(server.urls[scheme]).version()
    monkeypatch.setenv("BLIPSTREAM_API_KEY", " secret\n")
    statistics = Statistics(server.urls[scheme])
    assert statistics.version() == "2.51.0"
    assert statistics.models()["caption"]["success"] == 3


def test_no_other_host_gets_the_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIPSTREAM_API_KEY", "secret")
    server.redirects = True
    with pytest.raises(Unavailable):
        Statistics(server.urls["http"]).version()
    assert server.elsewhere == [None]
