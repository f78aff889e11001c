# SPDX-License-Identifier: Apache-2.0
"""Streams of captions, and how they end when the network, the server or the client ends them."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from blipstream_client import (
    AsyncClient,
    BlipstreamError,
    Caption,
    Client,
    InvalidRequest,
    ModelNotReady,
    Piece,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)
from blipstream_client._events import EventReader
from tests.support.proxy import Proxy
from tests.support.raw_http import serve_raw
from tests.support.tiny_triton import FULL, Event, Inputs, Refusal, TinyTriton, word_by_word

IMAGE = np.array([[b"12345"]], np.object_)


def stream(kind: str, url: str, pieces: list[Piece], options: Any = None, **arguments: Any) -> None:
    """Add the pieces from either kind of client to `pieces`."""

    async def gather() -> None:
        async with AsyncClient(url, **arguments) as client:
            async for piece in client.stream(IMAGE.item(), **options or {}):
                pieces.append(piece)  # noqa: PERF401 - those before an error, too

    if kind == "async":
        asyncio.run(gather())
        return
    with Client(url, **arguments) as client:
        for piece in client.stream(IMAGE.item(), **options or {}):
            pieces.append(piece)  # noqa: PERF402


class Asked:
    """A stream that keeps the inputs of each request."""

    def __init__(self, events: list[Event | Refusal] | None = None, failures: int = 0) -> None:
        self.inputs: list[Inputs] = []
        self._events = events
        self._failures = failures

    def __call__(self, inputs: Inputs) -> Iterator[Event]:
        self.inputs.append(inputs)
        if len(self.inputs) <= self._failures:
            raise FULL
        for event in word_by_word(inputs) if self._events is None else self._events:
            if isinstance(event, Refusal):
                raise event
            yield event


def test_pieces(tiny: TinyTriton, url: str, kind: str) -> None:
    tiny.grow = asked = Asked()
    pieces: list[Piece] = []
    options = {"prompt": "ein Bär", "max_tokens": 7, "temperature": 0.5, "do_sample": True}
    stream(kind, url, pieces, options, headers={"X-Team": "birds"})
    whole = Caption("5 bytes", -1.5, 2, (-0.75, -0.75), finish_reason="stop")
    assert pieces == [Piece("5", -0.75), Piece(" bytes", -0.75, whole)]
    assert tiny.headers[-1]["x-team"] == "birds"
    (inputs,) = asked.inputs
    prompt = inputs.pop("prompt").item()
    assert (prompt if isinstance(prompt, str) else prompt.decode()) == "ein Bär"  # JSON has no bytes
    assert {name: value.item() for name, value in inputs.items()} == {
        "image": IMAGE.item(),
        "max_tokens": 7,
        "temperature": 0.5,
        "do_sample": True,
    }


def test_wrong_options_are_raised_at_once() -> None:
    for client in (Client(), AsyncClient()):
        with pytest.raises(InvalidRequest, match="max_tokens must be a whole number"):
            client.stream(b"image", max_tokens="7")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="timeout"):
            client.stream(b"image", timeout=0)


def test_a_stream_is_retried_before_its_first_piece(tiny: TinyTriton, url: str, kind: str) -> None:
    tiny.grow = asked = Asked(failures=2)
    pieces: list[Piece] = []
    stream(kind, url, pieces)
    assert "".join(piece.text for piece in pieces) == "5 bytes"
    tiny.grow = Asked(failures=9)
    with pytest.raises(ServerOverloaded):
        stream(kind, url, pieces, retries=1)
    assert len(asked.inputs) == 3


def test_a_lost_connection_before_the_first_piece(tiny: TinyTriton, between: Proxy, url: str, kind: str) -> None:
    asked = Asked()

    def lose_the_first(inputs: Inputs) -> Iterator[Event]:
        if not asked.inputs:
            between.cut()
        return asked(inputs)

    tiny.grow = lose_the_first
    pieces: list[Piece] = []
    stream(kind, url, pieces)
    assert len(asked.inputs) == len(pieces) == 2


def test_a_broken_stream_is_not_retried(tiny: TinyTriton, between: Proxy, url: str, kind: str) -> None:
    asked = Asked()
    shown = threading.Event()

    def lose(inputs: Inputs) -> Iterator[Event]:
        events = asked(inputs)
        yield next(events)
        shown.wait(20)
        between.cut()
        yield from events

    class Pieces(list[Piece]):
        def append(self, piece: Piece) -> None:
            super().append(piece)
            shown.set()

    tiny.grow, pieces = lose, Pieces()
    with pytest.raises(ServerUnreachable, match="The stream broke off before its caption was whole") as caught:
        stream(kind, url, pieces)
    assert "\n" not in str(caught.value)
    assert [piece.text for piece in pieces] == ["5"]
    assert len(asked.inputs) == 1


FIRST = {"text": "5", "score": -0.75}


@pytest.mark.parametrize(
    ("events", "expected", "words"),
    [
        ([], ServerError, "ended before its caption did"),
        ([FIRST], ServerError, "ended before its caption did"),
        ([FIRST, Refusal(grpc.StatusCode.INTERNAL, "no memory")], ServerError, "^no memory$"),
        ([Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no image")], InvalidRequest, "^no image$"),
        ([FIRST, Refusal(grpc.StatusCode.INTERNAL, "Stub process is not healthy")], ServerError, "^Stub process"),
        ([Refusal(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'x' is not found")], ModelNotReady, "'x'"),
        ([{"score": -0.75}], ServerError, "is it a captioning model?"),
        ([{"text": "5", "finish_reason": "stop"}], ServerError, "is it a captioning model?"),
    ],
)
def test_streams_that_end_in_an_error(
    tiny: TinyTriton, url: str, kind: str, events: list[Any], expected: type[Exception], words: str
) -> None:
    tiny.grow = asked = Asked(events)
    with pytest.raises(expected, match=words) as caught:
        stream(kind, url, [])
    assert type(caught.value) is expected
    assert len(asked.inputs) == 1


@pytest.mark.parametrize("before", [0, 1], ids=["no piece", "one piece"])
def test_a_server_that_falls_silent(tiny: TinyTriton, url: str, kind: str, before: int) -> None:
    opened = threading.Event()

    def pause(inputs: Inputs) -> Iterator[Event]:
        for number, event in enumerate(word_by_word(inputs)):
            if number == before:
                opened.wait(30)
            yield event

    tiny.grow = pause
    pieces: list[Piece] = []
    with pytest.raises(RequestTimeout, match=r"within 0\.5 s"):
        stream(kind, url, pieces, {"timeout": 0.5})
    assert len(pieces) == before
    opened.set()


def test_a_slow_reader_has_time(tiny: TinyTriton, url: str, kind: str) -> None:
    """The timeout is for the server, not for the reader."""

    class Slow(list[Piece]):
        def append(self, piece: Piece) -> None:
            super().append(piece)
            time.sleep(0.6)

    tiny.grow, pieces = Asked(), Slow()
    stream(kind, url, pieces, timeout=0.5)
    assert pieces[-1].caption


def test_closing_ends_a_stream(tiny: TinyTriton, url: str, kind: str) -> None:
    """Whether the caller waits for a piece or not."""
    opened = threading.Event()

    def pause(inputs: Inputs) -> Iterator[Event]:
        yield FIRST
        opened.wait(30)
        yield from word_by_word(inputs)

    tiny.grow = pause

    async def close(waiting: bool) -> None:
        async with AsyncClient(url) as client:
            pieces = client.stream(b"image")
            await anext(pieces)
            if waiting:
                asyncio.get_running_loop().call_later(
                    0.1, lambda: closings.append(asyncio.create_task(client.aclose()))
                )
            else:
                await client.aclose()
            with pytest.raises(RequestCancelled, match="before the answer came"):
                await anext(pieces)

    closings: list[asyncio.Task[None]] = []
    for waiting in (True, False):
        if kind == "async":
            asyncio.run(close(waiting))
            continue
        client = Client(url)
        pieces = client.stream(b"image")
        next(pieces)
        timer = threading.Timer(0.1 if waiting else 0.0, client.close)
        timer.start()
        if not waiting:
            timer.join()
        with pytest.raises(RequestCancelled, match="before the answer came"):
            next(pieces)
        timer.join()
    opened.set()


def test_an_error_after_the_last_piece_is_ignored(tiny: TinyTriton, url: str, kind: str) -> None:
    tiny.grow = Asked([*word_by_word({"image": IMAGE}), Refusal(grpc.StatusCode.INTERNAL, "too late")])
    pieces: list[Piece] = []
    stream(kind, url, pieces)
    assert pieces[-1].caption


def chunked(*events: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (chunked(b"data: {\n\n"), "not one that Triton gives"),
        (chunked(b"data: []\n\n"), "is it a captioning model?"),
        (chunked(b"data: 1\n\n"), "not one that Triton gives"),
        (chunked(b'data: {"token_scores": [1.0]}\n\n'), "not one that Triton gives"),
        (chunked(b"<html>hello</html>\n\n"), "ended before its caption did"),
        (chunked(b'data: {"text": "a", "score": 0.0}\n'), "ended before its caption did"),
    ],
)
def test_odd_http_servers(kind: str, answer: bytes, words: str) -> None:
    port, join = serve_raw(answer)
    with pytest.raises(BlipstreamError, match=words) as caught:
        stream(kind, f"http://127.0.0.1:{port}", [], retries=0)
    assert type(caught.value) is ServerError
    join()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_may_be_cut_anywhere(end: bytes) -> None:
    lines = [
        b": a comment",
        b"event: piece",
        b'data: {"text": "B\xc3\xa4r"}',
        b"id: 1",
        b"",
        b"data:1",
        b"data: 2",
        b"",
        b"",
    ]
    text = end.join(lines)
    for size in range(1, len(text) + 1):
        reader = EventReader()
        events = [event for at in range(0, len(text), size) for event in reader.feed(text[at : at + size])]
        assert events == ['{"text": "Bär"}'.encode(), b"1\n2"], size
