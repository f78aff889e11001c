# SPDX-License-Identifier: Apache-2.0
"""A client that ends early cancels its calls and closes its connections properly. Else Triton may crash."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from blipstream_client import AsyncClient, Client, RequestCancelled
from tests.support.proxy import Heard, Proxy
from tests.support.tiny_triton import Gate, TinyTriton
from tests.support.waiting import wait_until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, CANCEL = 1, 3, 8  # RFC 9113
IN_FLIGHT = 4


@pytest.fixture
def gate(tiny: TinyTriton) -> Iterator[Gate]:
    """A gate that all answers wait for."""
    tiny.answer = gate = Gate()
    yield gate
    gate.opened.set()


def frames(heard: Heard) -> Iterator[tuple[int, int, bytes]]:
    """Kind, stream and payload of each HTTP/2 frame that a client sent."""
    data = bytes(heard.data)
    assert data.startswith(PREFACE)
    start = len(PREFACE)
    while start + 9 <= len(data):
        end = start + 9 + int.from_bytes(data[start : start + 3], "big")
        yield data[start + 3], int.from_bytes(data[start + 5 : start + 9], "big"), data[start + 9 : end]
        start = end


def check_cancelled(between: Proxy, scheme: str) -> None:
    """Each call in flight was cancelled if the protocol can do so, and no connection was reset."""
    wait_until(lambda: bool(between.heard) and all(heard.ended for heard in between.heard))
    assert {heard.ended for heard in between.heard} == {"orderly"}
    if scheme == "grpc":
        said = [frame for heard in between.heard for frame in frames(heard)]
        begun = [stream for kind, stream, _ in said if kind == HEADERS]
        cancelled = [stream for kind, stream, code in said if kind == RST_STREAM and code[-1] == CANCEL]
        assert len(begun) == IN_FLIGHT
        assert sorted(cancelled) == sorted(begun)
    else:
        assert len(between.heard) == IN_FLIGHT


class Images:
    """An image for each request in flight, and then an error, once all requests have arrived."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __iter__(self) -> Iterator[bytes]:
        yield from [b"image"] * IN_FLIGHT
        wait_until(lambda: self._gate.waiting == IN_FLIGHT)
        raise LookupError("no more")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for image in [b"image"] * IN_FLIGHT:
            yield image
        await asyncio.to_thread(wait_until, lambda: self._gate.waiting == IN_FLIGHT)
        raise LookupError("no more")


def test_an_exception(between: Proxy, url: str, scheme: str, kind: str, gate: Gate) -> None:
    async def ask() -> None:
        async with AsyncClient(url) as client:
            async for _ in client.caption_many(aiter(Images(gate)), max_in_flight=IN_FLIGHT + 1):
                pass

    with pytest.raises(LookupError):  # noqa: PT012
        if kind == "async":
            asyncio.run(ask())
        with Client(url) as client:
            list(client.caption_many(iter(Images(gate)), max_in_flight=IN_FLIGHT + 1))
    check_cancelled(between, scheme)


def test_a_stream_that_is_cancelled(between: Proxy, url: str, scheme: str, tiny: TinyTriton, gate: Gate) -> None:
    tiny.grow = lambda inputs: [{"text": gate(inputs)[0], "score": -1.0}]

    async def ask() -> None:
        async with AsyncClient(url) as client:
            asking = [asyncio.create_task(anext(client.stream(b"image"))) for _ in range(IN_FLIGHT)]
            await asyncio.to_thread(wait_until, lambda: gate.waiting == IN_FLIGHT)
        assert {type(each) for each in await asyncio.gather(*asking, return_exceptions=True)} == {RequestCancelled}
        await asyncio.to_thread(check_cancelled, between, scheme)

    asyncio.run(ask())


def test_a_client_that_nobody_closes(between: Proxy, url: str, scheme: str, gate: Gate) -> None:
    client = Client(url)
    with pytest.raises(LookupError):
        list(client.caption_many(iter(Images(gate)), max_in_flight=IN_FLIGHT + 1))
    check_cancelled(between, scheme)


def test_closing(between: Proxy, url: str, scheme: str, gate: Gate) -> None:
    client = Client(url)

    def ask() -> None:
        with pytest.raises(RequestCancelled):
            client.caption(b"image")

    threads = [threading.Thread(target=ask) for _ in range(IN_FLIGHT)]
    for thread in threads:
        thread.start()
    wait_until(lambda: gate.waiting == IN_FLIGHT)
    client.close()
    for thread in threads:
        thread.join()
    check_cancelled(between, scheme)


def test_ctrl_c(between: Proxy, url: str, scheme: str, gate: Gate, samples_folder: Path) -> None:
    images = sorted(map(str, samples_folder.glob("*.jpg")))[:IN_FLIGHT]
    command = [sys.executable, "-m", "blipstream_client", "caption", *images, "--url", url]
    with subprocess.Popen(command, env=os.environ | {"GRPC_VERBOSITY": "NONE"}) as process:
        wait_until(lambda: gate.waiting == IN_FLIGHT, seconds=60)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    check_cancelled(between, scheme)
