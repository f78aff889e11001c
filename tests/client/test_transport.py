# SPDX-License-Identifier: Apache-2.0
import json
import socket
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, parse_headers

import grpc
import numpy as np
import pytest

from blipstream_client import (
    Client,
    InvalidRequest,
    InvalidURL,
    ModelNotReady,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)
from blipstream_client._http import request_body, response_tensors
from blipstream_client._transport import Address, parse_url
from tests.client.tiny_triton import Answer, Inputs, Refusal, TinyTriton


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("grpc://localhost:9001", "grpc", "localhost", 9001, ""),
        ("grpc://captions", "grpc", "captions", 8001, ""),
        ("http://captions/", "http", "captions", 8000, ""),
        ("https://example.com/blip/", "https", "example.com", 443, "/blip"),
        ("grpcs://[::1]", "grpcs", "::1", 443, ""),
    ],
)
def test_addresses(url: str, scheme: str, host: str, port: int, path: str) -> None:
    assert parse_url(url) == Address(url, scheme, host, port, path)


@pytest.mark.parametrize(
    "url", ["", "localhost:8001", "127.0.0.1:8001", "ftp://localhost", "grpc://", "http://a:b", "grpc://a/b"]
)
def test_wrong_addresses_are_told_what_was_expected(url: str) -> None:
    with pytest.raises(InvalidURL, match=r"such as grpc://localhost:8001 or http://localhost:8000") as caught:
        Client(url)
    assert repr(url) in str(caught.value)


def test_http_bodies_carry_binary_tensors() -> None:
    body, headers = request_body({"image": np.array([[b"\x00\xff"]], dtype=np.object_)})
    length = int(headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(body[:length])["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("image", "BYTES", [1, 1])
    assert body[length:] == b"\x02\x00\x00\x00\x00\xff"
    assert "parameters" not in json.loads(body[:length]) or "binary_data_output" in body[:length].decode()


def test_http_answers_may_be_plain_json() -> None:
    output = {"name": "score", "datatype": "FP32", "shape": [1, 1], "data": [-1.5]}
    tensors = response_tensors(200, None, json.dumps({"outputs": [output]}).encode())
    assert tensors["score"].tolist() == [[-1.5]]


def test_ipv6(scheme: str) -> None:
    with Client(f"{scheme}://[::1]:9") as client, pytest.raises(ServerUnreachable):
        client.caption(b"image")


def test_nobody_listens(scheme: str, closed_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port}"
    with Client(url) as client:
        with pytest.raises(ServerUnreachable, match=rf"No Triton server answers at {url}.*\(.*Connection refused"):
            client.caption(b"image")
        assert not client.is_ready()


def test_no_such_host(scheme: str) -> None:
    with Client(f"{scheme}://no-such-host.invalid") as client, pytest.raises(ServerUnreachable):
        client.caption(b"image")


def test_no_answer_in_time(scheme: str, silent_port: int) -> None:
    with Client(f"{scheme}://127.0.0.1:{silent_port}", timeout=0.2) as client:
        with pytest.raises(RequestTimeout, match=r"within 0\.2 s"):
            client.caption(b"image")
        assert not client.is_ready()


@pytest.mark.parametrize(("scheme", "other"), [("grpc", "http"), ("http", "grpc")])
def test_the_port_of_the_other_protocol(tiny: TinyTriton, scheme: str, other: str) -> None:
    url = tiny.url(other).replace(other, scheme)
    with Client(url, timeout=5) as client, pytest.raises(ServerUnreachable, match=url):
        client.caption(b"image")


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "not an image", InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'caption' is not found", ModelNotReady),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", ServerOverloaded),
        (grpc.StatusCode.INTERNAL, "Stub process is not healthy", ServerError),
    ],
)
def test_the_servers_own_words(
    tiny: TinyTriton, client: Client, code: grpc.StatusCode, message: str, expected: type[Exception]
) -> None:
    def refuse(_: Inputs) -> Answer:
        raise Refusal(code, f"in ensemble 'caption', [request id: <id_unknown>] {message}")

    tiny.answer = refuse
    with pytest.raises(expected) as caught:
        client.caption(b"image")
    assert type(caught.value) is expected
    assert str(caught.value) == message


def serve_raw(*answers: bytes) -> tuple[int, Callable[[], None]]:
    """A port that gives each connection one raw answer and hangs up; and a function that waits for its end."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server:
            for answer in answers:
                connection, _ = server.accept()
                with connection, connection.makefile("rb") as request:
                    request.readline()
                    request.read(int(parse_headers(request).get("Content-Length", 0)))
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return server.getsockname()[1], thread.join


def http_answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (http_answer("200 OK", b"<html>hello</html>"), ServerError, "not one that Triton gives"),
        (http_answer("200 OK", b"[]"), ServerError, "not one that Triton gives"),
        (http_answer("200 OK", b'{"outputs": []}'), ServerError, "is it a captioning model?"),
        (http_answer("502 Bad Gateway", b"<html>oh</html>"), ServerUnreachable, "502"),
        (http_answer("413 Too Large", b""), InvalidRequest, "answered 413 without a message"),
        (b"", ServerUnreachable, "closed connection"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ServerUnreachable, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", ServerUnreachable, "IncompleteRead"),
    ],
)
def test_odd_http_servers(answer: bytes, expected: type[Exception], words: str) -> None:
    port, join = serve_raw(answer)
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(expected, match=words):
        client.caption(b"image")
    join()


def test_an_idle_http_connection_that_the_server_closed_is_replaced() -> None:
    ready = http_answer("200 OK", b"")
    port, join = serve_raw(ready, ready)
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.is_ready()
        assert client.is_ready()
    join()


def test_closing_while_http_connects(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = HTTPConnection.connect

    def close_then_connect(connection: HTTPConnection) -> None:
        client.close()
        connect(connection)

    monkeypatch.setattr(HTTPConnection, "connect", close_then_connect)
    started = time.monotonic()
    with Client(f"http://127.0.0.1:{silent_port}", timeout=20) as client, pytest.raises(RequestCancelled):
        client.caption(b"image")
    assert time.monotonic() - started < 10


def test_a_path_before_tritons_own() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, Client(f"http://127.0.0.1:{server.getsockname()[1]}/blip", timeout=0.2) as client:
        assert not client.is_ready()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(65536).startswith(b"GET /blip/v2/models/caption/ready HTTP/1.1\r\n")
