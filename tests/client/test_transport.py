# SPDX-License-Identifier: Apache-2.0
import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpcore2
import numpy as np
import pytest

from blipstream_client import (
    AsyncClient,
    BlipstreamError,
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
from blipstream_client._deadline import Deadline
from blipstream_client._http import http_request
from blipstream_client._requests import InferRequest
from tests.support.clients import texts
from tests.support.raw_http import http_answer, serve_raw
from tests.support.tiny_triton import Answer, Inputs, Refusal, TinyTriton, tiny_triton


def test_wrong_addresses_are_told_what_was_expected() -> None:
    with pytest.raises(InvalidURL, match=r"such as grpc://localhost:8001 or http://localhost:8000"):
        Client("localhost:8001")


def test_http_bodies_carry_binary_tensors() -> None:
    asked = http_request(InferRequest("caption", {"image": np.array([[b"\x00\xff"]], dtype=np.object_)}), Deadline(60))
    length = int(dict(asked.headers)["Inference-Header-Content-Length"])
    header = json.loads(asked.body[:length])
    (tensor,) = header["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("image", "BYTES", [1, 1])
    assert asked.body[length:] == b"\x02\x00\x00\x00\x00\xff"
    assert header["parameters"]["binary_data_output"] is True


def test_ipv6(scheme: str) -> None:
    with Client(f"{scheme}://[::1]:9") as client, pytest.raises(ServerUnreachable):
        client.caption(b"image")


def test_every_address_of_a_name_is_asked() -> None:
    """As a headless Service of Kubernetes has several. Here, localhost has an IPv4 and an IPv6 address."""
    with tiny_triton() as first:
        try:
            second = tiny_triton(f"[::1]:{first.grpc_port}")
            with second as other, Client(f"grpc://localhost:{first.grpc_port}") as client:
                assert client.is_ready()
                for _ in range(20):
                    client.caption(b"image")
                    if first.headers and other.headers:
                        return
        except RuntimeError as error:
            pytest.skip(f"there is no IPv6 here: {error}")
    pytest.fail("only one was asked")


def test_nobody_listens(scheme: str, closed_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port}"
    with Client(url) as client:
        with pytest.raises(ServerUnreachable, match=rf"No Triton server answers at {url}.*\(.*Connection refused"):
            client.caption(b"image")
        assert not client.is_ready()


def test_loopback_asks_no_proxy(
    tiny: TinyTriton, scheme: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http", "https", "all", "grpc"):
        for variable in (f"{name}_proxy", f"{name}_PROXY".upper()):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    for host in ("127.0.0.1", "localhost"):
        with Client(tiny.url(scheme).replace("127.0.0.1", host)) as client:
            assert client.is_ready()


def test_no_such_host(scheme: str) -> None:
    with Client(f"{scheme}://no-such-host.invalid") as client, pytest.raises(ServerUnreachable):
        client.caption(b"image")


def test_no_answer_in_time(scheme: str, silent_port: int) -> None:
    with Client(f"{scheme}://127.0.0.1:{silent_port}", timeout=0.2) as client:
        with pytest.raises(RequestTimeout, match=r"within 0\.2 s"):
            client.caption(b"image")
        assert not client.is_ready()


@pytest.mark.parametrize("tls", ["", "s"], ids=["", "TLS"])
@pytest.mark.parametrize(("scheme", "other"), [("grpc", "http"), ("http", "grpc"), ("grpc", "grpc"), ("http", "http")])
def test_the_port_of_another_protocol(tiny: TinyTriton, scheme: str, other: str, tls: str, kind: str) -> None:
    url = tiny.url(other).replace(other, f"{scheme}{tls}")
    if url == tiny.url(other):
        assert texts(kind, url, [b"image"]) == ["5 bytes"]
        return
    with pytest.raises(ServerUnreachable, match=f"^Expected .* at {url}, and .* answers there: use {tiny.url(other)}$"):
        asyncio.run(ask(url)) if kind == "async" else Client(url).caption(b"image")


async def ask(url: str) -> None:
    async with AsyncClient(url) as client:
        await client.caption(b"image")


def test_http_at_the_tls_port_of_nginx() -> None:
    """It answers, and a page of its own."""
    page = http_answer("400 Bad Request", b"<html>The plain HTTP request was sent to HTTPS port</html>")
    port, join = serve_raw(page)
    with Client(f"http://127.0.0.1:{port}", retries=0) as client, pytest.raises(ServerUnreachable):
        client.caption(b"image")
    join()


def test_one_of_several_at_another_protocol(tiny: TinyTriton, kind: str) -> None:
    """The others do the work."""
    url = f"grpc://127.0.0.1:{tiny.port('http')},127.0.0.1:{tiny.port('grpc')}"
    assert texts(kind, url, [b"image"] * 4) == ["5 bytes"] * 4


def test_addresses_are_shown_as_people_write_them(closed_port: int) -> None:
    for scheme in ("grpc", "http"):
        with Client(f"{scheme}://[::1]:{closed_port}", retries=0) as client, pytest.raises(ServerUnreachable) as caught:
            client.caption(b"image")
        assert "%5B" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "not an image", InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'caption' is not found", ModelNotReady),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", ServerOverloaded),
        (grpc.StatusCode.INTERNAL, "Stub process is not healthy", ServerError),
    ],
)
def test_the_servers_messages(
    tiny: TinyTriton, client: Client, code: grpc.StatusCode, message: str, expected: type[Exception]
) -> None:
    def refuse(_: Inputs) -> Answer:
        raise Refusal(code, f"in ensemble 'caption', [request id: <id_unknown>] {message}")

    tiny.answer = refuse
    with pytest.raises(expected) as caught:
        client.caption(b"image")
    assert type(caught.value) is expected
    remedy = ": `blipstream info` names those that the server has" if code is grpc.StatusCode.NOT_FOUND else ""
    assert str(caught.value) == message + remedy


LONGEST_MESSAGE = 500  # characters
LONG = {"name": "x" * 10**6, "datatype": "y" * 10**6, "shape": [1], "parameters": {"binary_data_size": "z" * 10**6}}
MANY = [
    {"name": f"output {number}", "datatype": "FP32", "shape": [0], "parameters": {"binary_data_size": 0}}
    for number in range(10_000)
]


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (http_answer("200 OK", b"<html>hello</html>"), ServerError, "not one that Triton gives"),
        (http_answer("200 OK", b"[]"), ServerError, "not one that Triton gives"),
        (http_answer("200 OK", b'{"outputs": []}'), ServerError, "is it a captioning model?"),
        (http_answer("502 Bad Gateway", b"<html>oh</html>"), ServerUnreachable, "502"),
        (http_answer("413 Too Large", b""), InvalidRequest, "answered 413 without a message"),
        (b"", ServerUnreachable, "closed the connection"),
        (b"220 mail ESMTP\r\n\r\n", ServerUnreachable, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", ServerUnreachable, "closed the connection"),
        (http_answer("400 Bad", json.dumps({"error": "no " * 10**6}).encode()), InvalidRequest, "^no no no"),
        (
            http_answer("400 Bad", json.dumps({"error": "[request id: x] " * 10**6}).encode()),
            InvalidRequest,
            "request id",
        ),
        (http_answer("503 Bad", json.dumps({"error": ["no"] * 10**6}).encode()), ServerUnreachable, "no"),
        (http_answer("500 Bad", b"<html>" * 10**6), ServerError, "answered 500 without a message"),
        (http_answer("500 Bad", b"[" * 10**6), ServerError, "answered 500 without a message"),
        (http_answer("200 OK", b"[" * 10**6), ServerError, "not one that Triton gives"),
        (http_answer("200 OK", json.dumps({"outputs": [LONG]}).encode()), ServerError, "not one that Triton gives"),
        (http_answer("200 OK", json.dumps({"outputs": MANY}).encode()), ServerError, "is it a captioning model?"),
        (b"HTTP/1.1 200 " + b"a" * 10**6, ServerUnreachable, "does not speak HTTP"),
        (b"a" * 10_000 + b"\r\n\r\n", ServerUnreachable, "does not speak HTTP"),
    ],
    ids=lambda _: "",
)
def test_odd_http_servers(answer: bytes, expected: type[Exception], words: str) -> None:
    port, join = serve_raw(answer)
    with Client(f"http://127.0.0.1:{port}", retries=0) as client, pytest.raises(expected, match=words) as caught:
        client.caption(b"image")
    join()
    assert len(str(caught.value)) < LONGEST_MESSAGE


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_no_message_repeats_all_that_a_server_says(tiny: TinyTriton, client: Client, stream: bool) -> None:
    def refuse(_: Inputs) -> Any:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"image must {'be ' * 1_500}small")

    tiny.answer = tiny.grow = refuse
    with pytest.raises(InvalidRequest, match=r"^image must be be .*\.\.\..* be small$") as caught:
        list(client.stream(b"image")) if stream else client.caption(b"image")
    assert len(str(caught.value)) < LONGEST_MESSAGE


@pytest.mark.parametrize(
    "call",
    [
        lambda: Client("x" * 10**6),
        lambda: Client(f"grpc://{'x' * 10**6}:y"),
        lambda: Client(f"grpc://localhost/{'x' * 10**6}"),
        lambda: Client(f"grpc://user@{'x' * 10**6}"),
        lambda: Client(f"http://{'x' * 10**6}", ca_file="ca.pem"),
        lambda: Client(headers={"x " * 10**6: "y"}),
        lambda: Client(headers={"x" * 10**6: "\n"}),
        lambda: Client(timeout=-(10**5000)),
        lambda: Client(retries=-(10**5000)),
        lambda: Client().caption(f"http://127.0.0.1/{'x' * 10**6}"),
        lambda: Client().caption(f"http://{'x' * 10**6}/"),
        lambda: Client().caption(f"http://{'x.' * 10**6}example/"),
        lambda: Client().caption(f"http://[{'x' * 10**6}/"),
        lambda: Client(f"http://127.0.0.1:1/{'x' * 10**6}", retries=0).caption(b"image"),
        lambda: Client().caption(b"image", prompt=b"x" * 10**6),  # type: ignore[arg-type]
        lambda: Client().caption(b"image", max_tokens=["x"] * 10**6),  # type: ignore[arg-type]
        lambda: Client().caption(b"image", max_tokens=10**5000),
        lambda: Client().caption(b"image", max_tokens=[10**5000]),  # type: ignore[arg-type]
        lambda: Client().caption(b"image", temperature=10**5000),
    ],
)
def test_no_message_repeats_all_that_a_caller_says(call: Callable[[], object]) -> None:
    with pytest.raises(BlipstreamError) as caught:
        call()
    assert len(str(caught.value)) < LONGEST_MESSAGE


def test_an_address_with_a_password_is_refused_without_it(scheme: str) -> None:
    with pytest.raises(InvalidURL, match=r"without a name and password, got one for \w+://host:1: send them") as caught:
        Client(f"{scheme}://user:secret@host:1")
    assert "secret" not in str(caught.value)


def test_an_idle_http_connection_that_the_server_closed_is_replaced() -> None:
    ready = http_answer("200 OK", b"")
    port, join = serve_raw(ready, ready)
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.is_ready()
        time.sleep(0.5)  # for the end of the connection to arrive
        assert client.is_ready()
    join()


def test_closing_while_http_connects(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = httpcore2.SyncBackend.connect_tcp

    def close_then_connect(*args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        client.close()
        return connect(*args, **kwargs)

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", close_then_connect)
    with Client(f"http://127.0.0.1:{silent_port}", timeout=200) as client, pytest.raises(RequestCancelled):
        client.caption(b"image")


def test_a_path_before_tritons_own() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, Client(f"http://127.0.0.1:{server.getsockname()[1]}/blip", timeout=0.2) as client:
        assert not client.is_ready()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(65536).startswith(b"GET /blip/v2/models/caption/ready HTTP/1.1\r\n")
