# SPDX-License-Identifier: Apache-2.0
"""The proxy: nginx with our configuration, in front of a running Triton."""

import base64
import gzip
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from tritonclient.grpc import service_pb2, service_pb2_grpc

from blipstream.proxy.nginx import configuration
from blipstream.server.arguments import ADMIN_HEADER
from blipstream.server.triton import TritonServer
from blipstream_client import AccessDenied, Client, ServerOverloaded, ServerUnreachable
from tests.conftest import ROOT, SAMPLES
from tests.support.deployment import compose
from tests.support.programs import free_port, listens, program, running
from tests.support.waiting import wait_until

CONFIG = ROOT / "deploy" / "nginx" / "nginx.conf"
KEY, BUSY_KEY = "0f3c-A-key", "77aa-another-key"
SAMPLE = "a-book.jpg"
INFER = "/v2/models/caption/infer"
GLOBALS = "daemon off;" + " user root;" * (os.geteuid() == 0)  # nobody else can read the test's files


@dataclass(frozen=True)
class Proxy:
    port: int
    folder: Path

    @property
    def certificates(self) -> Path:
        return self.folder / "authority.pem"

    def client(self, scheme: str, **arguments: Any) -> Client:
        given: dict[str, Any] = {"headers": {"authorization": f"Bearer {KEY}"}, "retries": 0} | arguments
        return Client(f"{scheme}://127.0.0.1:{self.port}", ca_file=self.certificates, **given)

    @contextmanager
    def stub(self) -> Iterator[Any]:
        credentials = grpc.ssl_channel_credentials(self.certificates.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials) as channel:
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        key: str = KEY,
        headers: dict[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        credentials = {"Authorization": f"Bearer {key}"} if key else {}
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            self.port,
            context=ssl.create_default_context(cafile=self.certificates),
            timeout=60,
            source_address=(source, 0),
        )
        with closing(connection):
            connection.request("GET" if body is None else "POST", path, body, credentials | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()

    @contextmanager
    def sent(self, method: str, path: str, headers: str, body: bytes = b"", key: str = KEY) -> Iterator[int]:
        """Send a request that no library would send; yield the status, while the connection stays open."""
        context = ssl.create_default_context(cafile=self.certificates)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n{headers}\r\n\r\n"
            connection.sendall(head.encode() + body)
            yield int(connection.makefile("rb").readline().split()[1])

    def send(self, method: str, path: str, headers: str, body: bytes = b"", key: str = KEY) -> int:
        with self.sent(method, path, headers, body, key) as status:
            return status


@contextmanager
def proxying(server: TritonServer, folder: Path, changes: dict[str, str] | None = None, *start: str) -> Iterator[Proxy]:
    """Our nginx in front of `server`, with `changes` to its configuration, by the command `start`."""
    port = free_port()
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "tmp").mkdir()
    (folder / "keys").write_text(f"~^{KEY}$ alice;\n~^{BUSY_KEY}$ bob;\n~^$ nobody;\n")
    triton = f"127.0.0.1:{server.http_port}", f"127.0.0.1:{server.grpc_port}"
    config = configuration(f"127.0.0.1:{port}", *triton)
    for ours, here in ({"worker_processes auto": "worker_processes 1"} | (changes or {})).items():
        assert ours in config
        config = config.replace(ours, here)
    (folder / "nginx.conf").write_text(config)
    options: list[str | Path] = ["-p", folder, "-c", "nginx.conf", "-e", "stderr", "-g", GLOBALS]
    with running(*start, program("nginx"), *options, log=folder / "log", until=lambda: listens(port)):
        yield Proxy(port, folder)


@pytest.fixture(scope="module")
def proxy(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxying(server, tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_captions_with_a_key(proxy: Proxy, samples: dict[str, str], scheme: str) -> None:
    with proxy.client(scheme) as client:
        assert client.caption(SAMPLES / SAMPLE).text == samples[SAMPLE]
        assert client.info().runtimes["encoder"] == "openvino"
    for headers in ({"x-api-key": KEY}, {"authorization": f"bearer {KEY}"}):
        with proxy.client(scheme, headers=headers) as client:
            assert client.is_ready()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer guess"},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY.swapcase()}"},
        {"authorization": f"Bearer {KEY}{KEY}"},
        {"x-api-key": "alice"},
        {"x-api-key": KEY.lower()},
        {"x-api-key": ""},
    ],
)
def test_no_captions_without(proxy: Proxy, scheme: str, headers: dict[str, str]) -> None:
    fault = pytest.raises(AccessDenied, match="the key is missing or wrong: send the")
    with proxy.client(scheme, headers=headers) as client, fault:
        client.caption(SAMPLES / SAMPLE)


def test_streams_come_word_by_word(proxy: Proxy, samples: dict[str, str]) -> None:
    image = base64.b64encode((SAMPLES / SAMPLE).read_bytes()).decode()
    body = json.dumps({"image": f"data:image/jpeg;base64,{image}"}).encode()
    status, answer = proxy.ask("/v2/models/caption_stream/generate_stream", body)
    pieces = [json.loads(line.removeprefix("data: ")) for line in answer.decode().split("\n\n") if line]
    assert status == 200
    assert len(pieces) > 3
    assert "".join(piece["text"] for piece in pieces) == samples[SAMPLE]


@pytest.fixture
def stub(proxy: Proxy) -> Iterator[Any]:
    with proxy.stub() as stub:
        yield stub


def stream_request(max_tokens: int) -> Any:
    request = service_pb2.ModelInferRequest(model_name="caption_stream")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1])
    image = (SAMPLES / SAMPLE).read_bytes()
    request.raw_input_contents.extend([len(image).to_bytes(4, "little") + image, np.int32(max_tokens).tobytes()])
    return request


def test_streams_over_grpc(stub: Any) -> None:
    """The second request is sent when the first has been answered: nothing is held back in either direction."""
    texts: list[list[str]] = []

    def requests() -> Iterator[Any]:
        for length in (1, 5):
            texts.append([])
            yield stream_request(length)

    for answer in stub.ModelStreamInfer(requests(), metadata=[("authorization", f"Bearer {KEY}")], timeout=60):
        assert not answer.error_message
        texts[-1].append(answer.infer_response.raw_output_contents[0])
    assert sum(map(len, texts)) >= 6


def test_streams_over_grpc_need_a_key(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.ModelStreamInfer(iter([stream_request(1)]), timeout=60))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


ADMIN_PATHS = {
    "/v2/repository/index": b"{}",
    "/v2/repository/models/caption/load": b"{}",
    "/v2/repository/models/caption/unload": b"{}",
    "/v2/systemsharedmemory/status": None,
    "/v2/systemsharedmemory/region/x/register": b"{}",
    "/v2/cudasharedmemory/status": None,
    "/v2/trace/setting": b"{}",
    "/v2/logging": b"{}",
    "/v2/models/caption/trace/setting": b"{}",
    "/v2/models/stats": None,
    "/v2/models/caption/stats": None,
    "/v2/models/preprocess/infer": b"{}",
    "/v2/models/caption/../../repository/index": b"{}",
    "/v2/repository/..%2fmodels/index": b"{}",
    "/v2/models/caption/..%2f..%2frepository/index": b"{}",
    "/v2/repository/%2e%2e/models/caption": None,
    "/key": None,
    "/metrics": None,
    "/": None,
}


@pytest.mark.parametrize("path", ADMIN_PATHS)
def test_nobody_administers_over_http(proxy: Proxy, path: str) -> None:
    assert proxy.ask(path, ADMIN_PATHS[path], headers={ADMIN_HEADER: "key"})[0] == 404


@pytest.mark.parametrize(
    "method",
    [
        "RepositoryIndex",
        "RepositoryModelLoad",
        "SystemSharedMemoryStatus",
        "TraceSetting",
        "LogSettings",
        "ModelStatistics",
    ],
)
def test_nobody_administers_over_grpc(stub: Any, method: str) -> None:
    request = getattr(service_pb2, f"{method}Request")
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request(), metadata=[("authorization", f"Bearer {KEY}")], timeout=60)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


@dataclass(frozen=True)
class Arrived:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Recorder:
    """A proxy in front of a server that records every request and answers with nothing."""

    proxy: Proxy
    arrived: list[Arrived]


@pytest.fixture(scope="module")
def recorder(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    arrived: list[Arrived] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            arrived.append(Arrived(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - as the base class has it

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as upstream, ThreadPoolExecutor(1) as pool:
        pool.submit(upstream.serve_forever)
        try:
            changes = {f"server 127.0.0.1:{server.http_port}": f"server 127.0.0.1:{upstream.server_port}"}
            with proxying(server, tmp_path_factory.mktemp("recorder"), changes) as proxy:
                yield Recorder(proxy, arrived)
        finally:
            upstream.shutdown()


@pytest.fixture
def arrived(recorder: Recorder) -> list[Arrived]:
    recorder.arrived.clear()
    return recorder.arrived


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/caption", 200),
        ("/v2/models/Caption", 200),  # Triton refuses it
        ("https://elsewhere/v2/models/caption", 200),
        ("//v2/models/caption", 404),
        ("/v2//models/caption", 404),
        ("/v2/./models/caption", 404),
        ("/v2/x/../models/caption", 404),
        ("/v2/x/%2e%2e/models/caption", 404),
        ("/v2/x/..%2fmodels/caption", 404),
        ("https://elsewhere/v2/x/..%2fmodels/caption", 404),
        ("/v2%2fmodels/caption", 404),
        ("/v2/models/%63aption", 404),
        ("/v2/models/%2563aption", 404),
        ("/v2/models/caption%0a", 404),
        ("/v2/models/caption%20/v2/models/caption", 404),
        ("/v2/models/caption%00", 400),
        ("/v2/models/caption?verbose", 404),
        ("/v2/models/caption%3fverbose", 404),
        ("/v2/models/caption;v=1", 404),
        ("/v2/models/caption#it", 404),
        ("/v2\\models\\caption", 404),
        ("/v2/models/caption/", 404),
        ("/V2/models/caption", 404),
        ("v2/models/caption", 400),
        ("*", 400),
    ],
)
def test_triton_gets_the_path_that_was_judged(
    recorder: Recorder, arrived: list[Arrived], path: str, status: int
) -> None:
    """An address that is not written plainly is refused, with and without a key."""
    assert recorder.proxy.ask(path)[0] == status
    assert [each.path for each in arrived] == [path.removeprefix("https://elsewhere")] * (status == 200)
    arrived.clear()
    assert recorder.proxy.ask(path, key="")[0] == (401 if status == 200 else status)
    assert not arrived


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "LOCK"])
def test_captions_are_posted(recorder: Recorder, arrived: list[Arrived], method: str) -> None:
    assert recorder.proxy.send(method, INFER, "Content-Length: 0") == 404
    assert not arrived


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: xchunked", 501),
        ("Content-Length: 4\r\nContent-Length: 5", 400),
        ("Content-Length: 4\r\nHost: y", 400),
    ],
)
def test_no_request_hides_in_another(recorder: Recorder, arrived: list[Arrived], framing: str, status: int) -> None:
    hidden = b"0\r\n\r\nGET /v2/repository/index HTTP/1.1\r\n\r\n"
    assert recorder.proxy.send("POST", INFER, framing, hidden) == status
    assert not arrived


@pytest.mark.parametrize(
    "form",
    ["application/x-www-form-urlencoded", "APPLICATION/X-WWW-FORM-URLENCODED", "multipart/form-data; boundary=x"],
)
def test_headers_that_triton_gets(recorder: Recorder, arrived: list[Arrived], form: str) -> None:
    """Triton gets only its own headers and harmless ones, and never a form: it parses forms on a small stack."""
    headers = {
        "Content-Type": form,
        "Accept-Encoding": "gzip",
        "Content-Encoding": "identity",
        "Content_Encoding": "gzip",
        "Inference-Header-Content-Length": "2",
        ADMIN_HEADER: "key",
        "X-API-Key": KEY,
    }
    assert recorder.proxy.ask(INFER, b"{}", headers=headers)[0] == 200
    (request,) = arrived
    assert request.headers == {
        "host": "triton_http",
        "content-type": "application/octet-stream",
        "content-length": "2",
        "inference-header-content-length": "2",
    }


def test_a_body_in_the_smallest_pieces_arrives_in_one(recorder: Recorder, arrived: list[Arrived]) -> None:
    """This many chunks of a byte each would end Triton."""
    body = b"x" * 100_000
    chunks = b"1\r\nx\r\n" * len(body) + b"0\r\n\r\n"
    assert recorder.proxy.send("POST", INFER, "Transfer-Encoding: chunked", chunks) == 200
    (request,) = arrived
    assert request.body == body
    assert request.headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize(
    "model", ["caption/infer", "caption/generate", "caption_stream/generate_stream", "explain/infer"]
)
@pytest.mark.parametrize(
    "coding", ["gzip", "GZIP", "x-gzip", "deflate", "br", "identity, gzip", "gzip, identity", "nonsense"]
)
def test_compressed_requests_are_refused(recorder: Recorder, arrived: list[Arrived], model: str, coding: str) -> None:
    body = gzip.compress(b"{")
    status, answer = recorder.proxy.ask(f"/v2/models/{model}", body, headers={"Content-Encoding": coding})
    assert status == 415
    assert "without Content-Encoding" in json.loads(answer)["error"]
    assert not arrived


@pytest.mark.parametrize("first", ["", "identity"])
def test_a_second_coding_does_not_come_through(recorder: Recorder, arrived: list[Arrived], first: str) -> None:
    """nginx below 1.23 looks only at the first header of a name."""
    codings = f"Content-Encoding: {first}\r\nContent-Encoding: gzip\r\nContent-Length: 2"
    assert recorder.proxy.send("POST", INFER, codings, b"{}") in (200, 415)
    assert not any("content-encoding" in each.headers for each in arrived)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_refused(stub: Any, compression: grpc.Compression) -> None:
    how: dict[str, Any] = {"metadata": [("authorization", f"Bearer {KEY}")], "compression": compression, "timeout": 60}
    calls: list[Callable[[], Any]] = [
        lambda: stub.ModelInfer(service_pb2.ModelInferRequest(), **how),
        lambda: stub.ServerLive(service_pb2.ServerLiveRequest(), **how),
        lambda: next(stub.ModelStreamInfer(iter([stream_request(1)]), **how)),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError, match="without grpc-encoding") as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def over_http2(proxy: Proxy, message: bytes, *headers: str) -> list[str]:
    """The headers that curl gets for a message that gRPC's own clients would not send."""
    options: list[str | Path] = [
        "--silent",
        "--http2",
        "--cacert",
        proxy.certificates,
        "--dump-header",
        "-",
        "--output",
        os.devnull,
    ]
    for header in (f"authorization: Bearer {KEY}", "content-type: application/grpc", "te: trailers", *headers):
        options += ["--header", header]
    url = f"https://127.0.0.1:{proxy.port}/inference.GRPCInferenceService/ServerLive"
    return (
        subprocess.run(["curl", *options, "--data-binary", "@-", url], input=message, capture_output=True, check=False)
        .stdout.decode()
        .split("\r\n")
    )


def test_a_message_that_says_it_is_compressed_is_not_followed(proxy: Proxy) -> None:
    """Triton refuses it without the header. If there are two headers, nginx forwards neither."""
    plain, packed = b"\0" + bytes(4), gzip.compress(b"")
    packed = b"\1" + len(packed).to_bytes(4, "big") + packed
    assert "grpc-status: 0" in over_http2(proxy, plain, "grpc-encoding: identity")
    for headers in ([], ["grpc-encoding: identity", "grpc-encoding: gzip"], ["grpc-encoding;", "grpc-encoding: gzip"]):
        answer = over_http2(proxy, packed, *headers)
        assert {"grpc-status: 12", "grpc-status: 13"} & set(answer), answer
    assert "grpc-status: 12" in over_http2(proxy, gzip.compress(plain), "content-encoding: gzip")


def test_errors_over_grpc_are_grpcs_own(proxy: Proxy) -> None:
    """Clients in other languages than Python insist on status 200 and the type."""
    status, *headers = over_http2(proxy, b"", "grpc-encoding: gzip")
    assert status.split()[1] == "200"
    assert {"content-type: application/grpc", "content-length: 0", "grpc-status: 12"} <= set(headers)


TOO_LARGE = {33: "33,554,432 bytes", 49: "at most 48 MiB"}  # who refuses so many MiB: the server, the proxy


@pytest.mark.parametrize("mebibytes", TOO_LARGE)
def test_a_file_may_be_as_large_as_the_server_takes(proxy: Proxy, mebibytes: int) -> None:
    """The server itself refuses the smaller one, so it came through; the proxy refuses the larger one."""
    image = b"BM" + bytes(mebibytes * 2**20)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": len(image) + 4},
                }
            ]
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, answer = proxy.ask(INFER, head + len(image).to_bytes(4, "little") + image, headers=headers)
    assert (status, TOO_LARGE[mebibytes] in json.loads(answer)["error"]) == (413 if mebibytes > 48 else 400, True)


@pytest.mark.parametrize("mebibytes", TOO_LARGE)
def test_a_message_may_be_as_large_as_the_server_takes(stub: Any, mebibytes: int) -> None:
    image = b"BM" + bytes(mebibytes * 2**20)
    request = service_pb2.ModelInferRequest(model_name="caption")
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(len(image).to_bytes(4, "little") + image)
    with pytest.raises(grpc.RpcError, match=TOO_LARGE[mebibytes]) as caught:
        stub.ModelInfer(request, metadata=[("authorization", f"Bearer {KEY}")], timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_health_needs_no_key(proxy: Proxy) -> None:
    assert proxy.ask("/v2/health/ready", key="")[0] == 200
    assert proxy.ask("/v2/health/ready", b"", key="")[0] == 404


@pytest.mark.parametrize(
    ("path", "key"),
    [
        *(("/v2/health/ready", ""), ("/v2/health/live", "")),
        *(("/v2", KEY), ("/v2/models/caption", KEY), ("/v2/models/caption/config", KEY)),
    ],
)
def test_what_is_asked_for_by_get_takes_no_body(
    recorder: Recorder, arrived: list[Arrived], path: str, key: str
) -> None:
    """Otherwise anybody's would lie in /tmp for a while."""
    chunk = b"7d0\r\n" + bytes(2000)
    assert recorder.proxy.send("GET", path, "Content-Length: 2000", key=key) == 413
    assert recorder.proxy.send("GET", path, "Transfer-Encoding: chunked", chunk, key) == 413
    assert not arrived
    status, answer = recorder.proxy.ask(path, bytes(2000), key)
    assert (status, "takes no body" in json.loads(answer)["error"]) == (413, True)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_too_many_requests(proxy: Proxy, scheme: str) -> None:
    """A client that asks too fast is refused, and another is answered meanwhile."""
    with proxy.client(scheme, headers={"authorization": f"Bearer {BUSY_KEY}"}) as client, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(client.info) for _ in range(150)]  # four requests each
        errors = [error for future in futures if (error := future.exception())]
    assert {type(error) for error in errors} == {ServerOverloaded}
    assert "too many requests" in str(errors[0])
    with proxy.client(scheme) as client:
        assert client.is_ready()


@pytest.mark.parametrize(("path", "status"), [("/v2/health/ready", 200), ("/v2/models/caption", 401), ("/", 404)])
def test_too_many_requests_without_a_key(server: TritonServer, tmp_path: Path, path: str, status: int) -> None:
    """They are counted by address. A client with a key is answered at the same address."""
    with proxying(server, tmp_path, {"rate=10r/s": "rate=1r/m", "burst=20": "burst=2"}) as proxy:
        assert [proxy.ask(path, key="")[0] for _ in range(5)] == [status] * 3 + [429] * 2
        assert proxy.ask(path, key="guess")[0] == 429
        assert proxy.ask(path, key="", source="127.0.0.2")[0] == status
        assert proxy.ask("/v2/models/caption")[0] == 200
        with proxy.client("grpcs", headers={}) as client, pytest.raises(ServerOverloaded, match="too many requests"):
            client.info()
        with proxy.client("grpcs") as client:
            assert client.is_ready()


@pytest.mark.parametrize(
    ("limit", "key", "others"),
    [
        ("strangers_at_a_time 32", "", [("", "127.0.0.2"), (KEY, "127.0.0.1")]),
        ("limit_conn at_a_time 256", KEY, [("", "127.0.0.1"), (BUSY_KEY, "127.0.0.1")]),
        ("from_an_address 1024", KEY, [("", "127.0.0.2"), (KEY, "127.0.0.2")]),
    ],
)
def test_too_many_at_a_time(
    server: TritonServer, tmp_path: Path, limit: str, key: str, others: list[tuple[str, str]]
) -> None:
    """While two requests of a key hang, its third is refused, and those of others go through."""
    path = "/v2/health/ready"
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        hanging.settimeout(60)
        changes = {
            limit: f"{limit.rpartition(' ')[0]} 2",
            f"server 127.0.0.1:{server.http_port}": f"server 127.0.0.1:{hanging.getsockname()[1]}",
        }
        with proxying(server, tmp_path, changes) as proxy, ThreadPoolExecutor() as pool, ExitStack() as connections:

            def goes_through(key: str, source: str = "127.0.0.1") -> None:
                pool.submit(proxy.ask, path, key=key, source=source)
                connections.enter_context(hanging.accept()[0])

            goes_through(key)
            goes_through(key)
            assert proxy.ask(path, key=key)[0] == 429
            for who, source in others:
                goes_through(who, source)


def test_too_many_large_requests(server: TritonServer, tmp_path: Path) -> None:
    """They are limited even if their last bytes come late. nginx says 100 once it has counted a request."""
    large, unknown = "Content-Length: 1000000", "Transfer-Encoding: chunked"
    stream = "/v2/models/caption_stream/generate_stream"
    with proxying(server, tmp_path, {"limit_conn large 20": "limit_conn large 2"}) as proxy, ExitStack() as waiting:
        for path, length in ((INFER, large), (stream, unknown)):
            status = waiting.enter_context(proxy.sent("POST", path, f"Expect: 100-continue\r\n{length}"))
            assert status == 100
        for path, length in ((INFER, large), (INFER, unknown), (stream, large)):
            assert proxy.send("POST", path, length) == 429
        assert proxy.ask(INFER, bytes(999_999))[0] == 500  # Triton's status for a body that is no JSON
        assert proxy.ask(INFER, bytes(1_000_000), BUSY_KEY)[0] == 500
        with proxy.client("grpcs") as client:
            assert client.caption(SAMPLES / SAMPLE).text
        wait_until(lambda: "ModelInfer" in (tmp_path / "log").read_text())
        assert '"status":429' not in (tmp_path / "log").read_text()


def test_no_key_alone_fills_the_disk() -> None:
    service, config = compose()["services"]["nginx"], CONFIG.read_text()
    (limit,) = re.findall(r"limit_conn large (\d+);", config)
    (size,) = re.findall(r"^ {8}client_max_body_size (\d+)m;", config, re.MULTILINE)
    (room,) = re.findall(r"size=(\d+)g", service["tmpfs"][0])
    assert int(limit) * int(size) <= int(room) * 1024 / 2


def test_too_many_streams_over_grpc(server: TritonServer, tmp_path: Path) -> None:
    """nginx does not count what a stream carries, so a key has fewer streams than other requests."""
    end = Event()

    def requests() -> Iterator[Any]:
        yield stream_request(1)
        end.wait()

    with proxying(server, tmp_path, {"streams 32": "streams 2"}) as proxy, proxy.stub() as stub:
        try:
            mine, others = ([("authorization", f"Bearer {key}")] for key in (KEY, BUSY_KEY))
            streams = [stub.ModelStreamInfer(requests(), metadata=each, timeout=60) for each in (mine, mine, others)]
            assert not any(next(stream).error_message for stream in streams)
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.ModelStreamInfer(requests(), metadata=mine, timeout=60))
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=mine, timeout=60).live
        finally:
            end.set()


def test_silent_connections_make_room(server: TritonServer, tmp_path: Path) -> None:
    """Even if nginx was started with a low limit of files, and with few connections."""
    changes = {
        "worker_connections 4096": "worker_connections 128",
        "client_header_timeout 10s": "client_header_timeout 1h",
    }
    script = 'ulimit -Sn 64; exec "$@"'
    with proxying(server, tmp_path, changes, "sh", "-c", script, "sh") as proxy, ExitStack() as silent:
        context = ssl.create_default_context(cafile=proxy.certificates)
        for _ in range(150):
            plain = silent.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=60))
            silent.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
        assert proxy.ask("/v2/models/caption")[0] == 200
        with proxy.client("grpcs") as client:
            assert client.is_ready()


def test_no_room_for_a_request(server: TritonServer, tmp_path: Path, samples: dict[str, str]) -> None:
    """A request that does not fit into /tmp fails, and no other. A limit on files stands in for a full /tmp."""
    script = "trap '' XFSZ; ulimit -f 4096; exec \"$@\""  # 2 MiB; without the trap it would be killed
    with proxying(server, tmp_path, None, "sh", "-c", script, "sh") as proxy, proxy.client("https") as client:
        with pytest.raises(ServerUnreachable, match="no room for large images"):
            client.caption(b"BM" + bytes(31 * 2**20))
        assert client.caption(SAMPLES / SAMPLE).text == samples[SAMPLE]


def test_a_stream_in_flight_ends_before_nginx_does(server: TritonServer, tmp_path: Path) -> None:
    """Docker and Kubernetes send SIGQUIT to nginx's image."""
    with proxying(server, tmp_path) as proxy, proxy.stub() as stub:
        pid = tmp_path / "tmp" / "nginx.pid"

        def requests() -> Iterator[Any]:
            yield stream_request(1)
            os.kill(int(pid.read_text()), signal.SIGQUIT)
            wait_until(lambda: not listens(proxy.port))
            yield stream_request(1)

        answers = list(stub.ModelStreamInfer(requests(), metadata=[("authorization", f"Bearer {KEY}")], timeout=60))
        assert len(answers) >= 2
        assert not any(answer.error_message for answer in answers)
        wait_until(lambda: not pid.exists())


def test_what_is_logged_has_bounds(server: TritonServer, tmp_path: Path) -> None:
    """The log has nothing that the limits refuse or that is refused before them, with and without a key."""
    with proxying(server, tmp_path, {"rate=10r/s": "rate=1r/m", "burst=20": "burst=2"}) as proxy:
        for key in ("", KEY):
            assert proxy.ask("/v2?x", key=key)[0] == 404
            assert proxy.ask(INFER, b"", key, {"Content-Encoding": "gzip"})[0] == 415
            assert proxy.send("POST", INFER, "Content-Length: 99999999", key=key) == 413
        assert [proxy.ask("/v2", key="guess")[0] for _ in range(5)] == [401] * 3 + [429] * 2
        assert proxy.ask("/v2")[0] == 200
        wait_until(lambda: '"status":200' in (tmp_path / "log").read_text())
    log = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [(line["client"], line["status"]) for line in lines] == [("", 401)] * 3 + [("alice", 200)]
    assert "[error]" not in log


def test_no_key_is_logged(proxy: Proxy) -> None:
    path = "/v2/models/caption/versions/1/ready"
    proxy.ask(path, key="a-wrong-key")
    proxy.ask(path)
    wait_until(lambda: f'"uri":"{path}","status":200' in (proxy.folder / "log").read_text())
    log = (proxy.folder / "log").read_text()
    assert '"client":"alice"' in log
    assert not any(key in log for key in (KEY, BUSY_KEY, "a-wrong-key"))
