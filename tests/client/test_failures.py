# SPDX-License-Identifier: Apache-2.0
"""The client when the network or a server fails. A real proxy between them makes the network fail."""

import asyncio
import re
import threading
import time

import grpc
import h11
import httpcore2
import pytest

from blipstream_client import (
    AsyncClient,
    Caption,
    Client,
    InvalidRequest,
    InvalidURL,
    RequestCancelled,
    RequestTimeout,
    ServerOverloaded,
    ServerUnreachable,
)
from blipstream_client._http import translate
from tests.support.clients import texts
from tests.support.proxy import Proxy, proxy
from tests.support.tiny_triton import FULL, Answer, Inputs, Refusal, TinyTriton, size_of_image, tiny_triton


class Flaky:
    """An answer that fails a number of times. It counts the requests."""

    def __init__(self, failures: int, refusal: Refusal) -> None:
        self.asked = 0
        self._failures = failures
        self._refusal = refusal
        self._lock = threading.Lock()

    def __call__(self, inputs: Inputs) -> Answer:
        with self._lock:
            self.asked += 1
            failing = self.asked <= self._failures
        if failing:
            raise self._refusal
        return size_of_image(inputs)


def test_an_overloaded_server_is_retried(tiny: TinyTriton, url: str, kind: str) -> None:
    tiny.answer = flaky = Flaky(2, FULL)
    assert texts(kind, url, [b"image"]) == ["5 bytes"]
    assert flaky.asked == 3


def test_retries_have_an_end(tiny: TinyTriton, url: str, kind: str) -> None:
    tiny.answer = flaky = Flaky(100, FULL)
    assert texts(kind, url, [b"image"], retries=2) == [ServerOverloaded]
    assert flaky.asked == 3


def test_retries_can_be_switched_off(tiny: TinyTriton, url: str, kind: str) -> None:
    tiny.answer = flaky = Flaky(1, FULL)
    assert texts(kind, url, [b"image"], retries=0) == [ServerOverloaded]
    assert flaky.asked == 1


STOPPING = Refusal(grpc.StatusCode.UNAVAILABLE, "[stopping] Server not ready: it is stopping, so ask another one")


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blipstream_client._retries.back_off", lambda _: 0.0)


class GoneForAWhile(Flaky):
    """Fails but for images of one byte."""

    def __call__(self, inputs: Inputs) -> Answer:
        if len(inputs["image"][0, 0]) == 1:
            return size_of_image(inputs)
        return super().__call__(inputs)


@pytest.mark.usefixtures("no_waits")
def test_a_server_that_has_answered_before_is_waited_for(tiny: TinyTriton, url: str, kind: str) -> None:
    """More often than `retries`: its supervisor restarts it."""

    tiny.answer = gone = GoneForAWhile(20, STOPPING)
    assert texts(kind, url, [b"1", b"22"], max_in_flight=1) == ["1 bytes", "2 bytes"]
    assert gone.asked == 21


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("refusal", [STOPPING, FULL], ids=["never seen", "overloaded"])
def test_others_are_not_waited_for(tiny: TinyTriton, url: str, kind: str, refusal: Refusal) -> None:
    tiny.answer = flaky = Flaky(100, refusal)
    expected = ServerOverloaded if refusal is FULL else ServerUnreachable
    assert texts(kind, url, [b"image"]) == [expected]
    assert flaky.asked == 4


@pytest.mark.usefixtures("no_waits")
def test_without_retries_nothing_is_waited_for(tiny: TinyTriton, url: str) -> None:
    with Client(url, retries=0) as client:
        assert client.caption(b"image").text == "5 bytes"
        tiny.answer = gone = Flaky(100, STOPPING)
        with pytest.raises(ServerUnreachable):
            client.caption(b"image")
    assert gone.asked == 1


@pytest.mark.usefixtures("no_waits")
def test_the_wait_for_a_restart_ends_at_the_deadline(
    tiny: TinyTriton, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the restart takes until then. The log has one sentence on it."""
    with Client(url, retries=1) as client:
        assert client.caption(b"image").text == "5 bytes"
        tiny.answer = gone = Flaky(1_000_000, STOPPING)
        with pytest.raises((ServerUnreachable, RequestTimeout)):  # depending on what the last attempt met
            client.caption(b"image", timeout=3)
    assert gone.asked > 2
    (said,) = caplog.messages
    assert re.fullmatch(rf"No Triton server answers at {url}: .* It has answered before: .* for up to \d s", said)


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL])
def test_permanent_errors_are_not_retried(tiny: TinyTriton, url: str, kind: str, code: grpc.StatusCode) -> None:
    tiny.answer = flaky = Flaky(1, Refusal(code, "no"))
    (error,) = texts(kind, url, [b"image"])
    assert isinstance(error, type)
    assert flaky.asked == 1


def test_no_retry_begins_after_the_deadline(tiny: TinyTriton, url: str, kind: str) -> None:
    tiny.answer = flaky = Flaky(10_000, FULL)
    (error,) = texts(kind, url, [b"image"], retries=10_000, timeout=1)
    assert error in (ServerOverloaded, RequestTimeout)  # depending on whether the last answer came in time
    assert 1 < flaky.asked < 100


def test_the_deadline_of_one_request(tiny: TinyTriton, url: str, kind: str) -> None:
    opened = threading.Event()

    def wait(inputs: Inputs) -> Answer:
        opened.wait(30)
        return size_of_image(inputs)

    tiny.answer = wait

    async def ask() -> Caption:
        async with AsyncClient(url) as client:
            return await client.caption(b"image", timeout=0.3)

    with Client(url) as client, pytest.raises(RequestTimeout, match=r"within 0\.3 s"):
        asyncio.run(ask()) if kind == "async" else client.caption(b"image", timeout=0.3)
    opened.set()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_invalid_timeouts(timeout: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be a number of seconds above 0"):
        Client(timeout=timeout)
    with Client() as client, pytest.raises(InvalidRequest, match="timeout"):
        client.caption_many([], timeout=timeout)


@pytest.mark.parametrize("reset", [False, True], ids=["cut", "reset"])
def test_connections_lost_during_a_request(tiny: TinyTriton, between: Proxy, url: str, kind: str, reset: bool) -> None:
    calls = []

    def lose_the_first(inputs: Inputs) -> Answer:
        calls.append(inputs)
        if len(calls) == 1:
            between.cut(reset=reset)
        return size_of_image(inputs)

    tiny.answer = lose_the_first
    images = [bytes(size) for size in range(1, 41)]
    assert texts(kind, url, images) == [f"{size} bytes" for size in range(1, 41)]


def test_without_retries_a_lost_connection_is_an_error(tiny: TinyTriton, between: Proxy, url: str, kind: str) -> None:
    def lose(inputs: Inputs) -> Answer:
        between.cut()
        return size_of_image(inputs)

    tiny.answer = lose
    assert texts(kind, url, [b"image"], retries=0) == [ServerUnreachable]


def test_a_slow_network(between: Proxy, url: str, kind: str) -> None:
    between.delay = 0.05
    assert texts(kind, url, [bytes(200_000)]) == ["200000 bytes"]


def test_a_silent_network_ends_at_the_deadline(between: Proxy, url: str, kind: str) -> None:
    between.deaf = True
    assert texts(kind, url, [b"image"], timeout=0.5) == [RequestTimeout]


def test_grpc_notices_a_silent_network(tiny: TinyTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is sent again over a new connection, long before its deadline."""
    monkeypatch.setattr("blipstream_client._grpc.CONNECT_SECONDS", 4.0)
    with (
        proxy(tiny.grpc_port) as between,
        Client(f"grpc://127.0.0.1:{between.port}", timeout=200, keepalive=1) as client,
    ):
        client.caption(b"image")
        between.deaf = True
        healed = threading.Timer(1, lambda: setattr(between, "deaf", False))
        healed.start()
        assert client.caption(b"image").text == "5 bytes"
        healed.join()
        assert between.connections == 2


def test_a_server_that_starts_late(scheme: str, kind: str, closed_port: int) -> None:
    with tiny_triton() as tiny:
        late = threading.Timer(0.5, lambda: servers.append(Proxy(tiny.port(scheme), port=closed_port)))
        servers: list[Proxy] = []
        late.start()
        assert texts(kind, f"{scheme}://127.0.0.1:{closed_port}", [b"image"], retries=20) == ["5 bytes"]
        late.join()
        servers[0].stop()


def test_two_servers_share_the_work_evenly(scheme: str, kind: str) -> None:
    with tiny_triton() as one, tiny_triton() as two:
        counts = [Flaky(0, FULL), Flaky(0, FULL)]
        one.answer, two.answer = counts
        url = f"{one.url(scheme)},127.0.0.1:{two.port(scheme)}"
        assert texts(kind, url, [b"image"] * 200) == ["5 bytes"] * 200
    assert [each.asked for each in counts] == [100, 100]


def test_a_dead_server_fails_no_image(scheme: str, kind: str, closed_port: int) -> None:
    with tiny_triton() as one:
        url = f"{scheme}://127.0.0.1:{closed_port},127.0.0.1:{one.port(scheme)}"
        assert texts(kind, url, [b"image"] * 100, retries=1) == ["5 bytes"] * 100


def test_a_silent_server_does_not_hide_one_that_is_ready(
    tiny: TinyTriton, scheme: str, kind: str, silent_port: int
) -> None:
    url = f"{scheme}://127.0.0.1:{silent_port},127.0.0.1:{tiny.port(scheme)}"

    async def ask() -> bool:
        async with AsyncClient(url, timeout=3) as client:
            return await client.is_ready()

    with Client(url, timeout=3) as client:
        assert asyncio.run(ask()) if kind == "async" else client.is_ready()


def test_closing_ends_is_ready(scheme: str, silent_port: int) -> None:
    async def close() -> None:
        async with AsyncClient(f"{scheme}://127.0.0.1:{silent_port}") as client:
            asking = asyncio.create_task(client.is_ready())
            await asyncio.sleep(0.1)
        with pytest.raises(RequestCancelled):
            await asking

    asyncio.run(close())


def test_an_overloaded_server_fails_no_image(scheme: str, kind: str) -> None:
    with tiny_triton() as one, tiny_triton() as two:
        one.answer = Flaky(10_000, FULL)
        url = f"{one.url(scheme)},127.0.0.1:{two.port(scheme)}"
        assert texts(kind, url, [b"image"] * 20, max_in_flight=1, retries=1) == ["5 bytes"] * 20


def test_a_server_that_came_back_is_asked_again(tiny: TinyTriton, scheme: str) -> None:
    with tiny_triton() as two, proxy(two.port(scheme)) as between:
        two.answer = counted = Flaky(0, FULL)
        url = f"{tiny.url(scheme)},127.0.0.1:{between.port}"
        with Client(url, timeout=10) as client:
            between.target = 1  # no process listens there
            between.cut()
            for _ in range(10):
                client.caption(b"image")
            assert counted.asked == 0
            between.target = two.port(scheme)
            deadline = time.monotonic() + 60
            while counted.asked == 0:
                assert time.monotonic() < deadline, "it was never asked again"
                client.caption(b"image")


def test_closing_ends_a_client_that_waits_to_try_again(tiny: TinyTriton, scheme: str) -> None:
    tiny.answer = flaky = Flaky(10_000, FULL)
    client = Client(tiny.url(scheme), retries=10_000)
    closer = threading.Thread(target=close_after, args=(client, flaky, 3))
    closer.start()
    with pytest.raises(RequestCancelled):
        client.caption(b"image")
    closer.join()


def close_after(client: Client, flaky: Flaky, requests: int) -> None:
    while flaky.asked < requests:
        time.sleep(0.01)
    client.close()


@pytest.mark.parametrize("headers", [{"authorization": "Bearer a.b-c"}, {"X-Team": "birds"}])
def test_headers_travel(tiny: TinyTriton, url: str, kind: str, headers: dict[str, str]) -> None:
    assert texts(kind, url, [b"image"], headers=headers) == ["5 bytes"]
    ((name, value),) = headers.items()
    assert tiny.headers[-1][name.lower()] == value


@pytest.mark.parametrize("secure", ["", "s"], ids=["plain", "TLS"])
def test_the_environments_key_takes_no_open_way(scheme: str, secure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIPSTREAM_API_KEY", "secret")
    url = f"{scheme}{secure}://localhost,captions.example"
    if secure:
        Client(url).close()
        return
    with pytest.raises(InvalidURL, match=f"without TLS to {scheme}://captions.example: use grpcs:// or") as caught:
        Client(url)
    assert "secret" not in str(caught.value)
    Client(url, headers={"Authorization": "Bearer mine"}).close()
    for empty in ("", " \n"):
        monkeypatch.setenv("BLIPSTREAM_API_KEY", empty)
        Client(url).close()


def test_a_key_that_cannot_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIPSTREAM_API_KEY", "sec\nret")
    with pytest.raises(InvalidRequest, match=r"^BLIPSTREAM_API_KEY must be printable ASCII on one line: set it again$"):
        Client()
    monkeypatch.setenv("BLIPSTREAM_API_KEY", "k" * 20_000)
    with pytest.raises(InvalidRequest, match=r"^BLIPSTREAM_API_KEY has 20,000 characters, and servers take headers of"):
        Client()
    monkeypatch.setenv("BLIPSTREAM_API_KEY", "k" * 8_000)
    Client().close()


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"": "c"}, {"a": "b\r\nc: d"}, {"a": " b"}, {"a": "é"}])
def test_headers_that_cannot_travel(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="header"):
        Client(headers=headers)


@pytest.mark.parametrize("name", ["Content-Length", "host", "inference-header-content-length", "TE", "grpc-timeout"])
def test_headers_that_are_the_clients_own(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"The header {name} is the client's own to set"):
        Client(headers={name: "5"})


@pytest.mark.parametrize("kind_of_error", [httpcore2.LocalProtocolError, h11.LocalProtocolError])
def test_a_request_that_http_cannot_send_is_invalid(kind_of_error: type[Exception]) -> None:
    assert isinstance(translate(kind_of_error("no"), "http://a", 1), InvalidRequest)
