# SPDX-License-Identifier: Apache-2.0
"""An OpenTelemetry collector: takes spans over HTTP, as protobuf or JSON, and keeps them."""

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

PATH = "/v1/traces"
ID = re.compile(rb'(?<=Id":")[0-9a-f]+(?=")')  # hexadecimal in OpenTelemetry's JSON, base64 in protobuf's


@dataclass
class Collector:
    """Where it listens, and what came."""

    url: str
    services: set[str] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)

    def take(self, data: TracesData) -> None:
        """Keep what one request brought."""
        for resource in data.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(names.get("service.name", ""))
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        """The spans of that name."""
        return [span for span in self.spans if span.name == name]


def _in_base64(found: re.Match[bytes]) -> bytes:
    return base64.b64encode(bytes.fromhex(found[0].decode()))


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port of loopback."""
    collected: Collector

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = TracesData()
            if self.headers["Content-Type"] == "application/json":
                json_format.Parse(ID.sub(_in_base64, body), data, ignore_unknown_fields=True)
            else:
                data.ParseFromString(body)
            collected.take(data)
            self.send_response(200 if self.path == PATH else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collected = Collector(f"http://127.0.0.1:{server.server_port}{PATH}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collected
        finally:
            server.shutdown()
            thread.join()
