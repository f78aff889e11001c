# SPDX-License-Identifier: Apache-2.0
"""The canary, with a toy server of the client's tests and with toy models."""

import time
from collections import Counter
from collections.abc import Container, Iterable
from concurrent.futures import wait
from contextlib import closing
from pathlib import Path
from threading import Event

import grpc
import pytest

from blipstream.errors import ServerError
from blipstream.options import OptionDefaults
from blipstream.server.canary import IDLE_SECONDS, MAX_PAUSE_SECONDS, Canary, check_first_caption
from blipstream.server.routes import CAPTION, STREAM
from blipstream.server.triton import TritonServer
from tests.support.proxy import proxy
from tests.support.tiny_triton import Answer, Inputs, Refusal, size_of_image, tiny_triton, word_by_word
from tests.support.tiny_triton import Event as StreamEvent
from tests.support.toy_models import write_repository
from tests.support.waiting import wait_until

BOTH = (CAPTION, STREAM)  # a server need not match


def send(canary: Canary, models: Container[str] = BOTH, *, all_routes: bool = False) -> None:
    """Send the canary, and wait for its answers."""
    canary.send(models, all_routes=all_routes)
    wait(canary._requests.values())


def test_the_canary_asks_every_route_and_then_those_that_refuse() -> None:
    requests, refuses, goes_on = Counter[str](), False, Event()
    goes_on.set()

    def answer(inputs: Inputs) -> Answer:
        requests["caption"] += 1
        return size_of_image(inputs)

    def grow(inputs: Inputs) -> Iterable[StreamEvent]:
        requests["stream"] += 1
        if refuses:
            raise Refusal(grpc.StatusCode.INTERNAL, "no words")
        goes_on.wait()
        return word_by_word(inputs)

    with tiny_triton() as tiny, closing(Canary(tiny.url("grpc"))) as canary:
        tiny.answer, tiny.grow = answer, grow
        send(canary, ["caption"])
        assert (requests, canary.refusal, canary.failing_route) == ({"caption": 1}, "", "")
        send(canary)
        assert (requests, canary.refusal, canary.failing_route) == ({"caption": 2, "stream": 1}, "", "")
        refuses = True
        for number in range(1, 4):
            send(canary)
            assert (requests["caption"], requests["stream"]) == (3, 1 + number)
            assert (canary.refusal, canary.failing_route) == ("no words", STREAM)
        send(canary, all_routes=True)
        assert (requests["caption"], canary.refusal, canary.failing_route) == (4, "no words", STREAM)
        refuses = False
        send(canary)
        assert (requests, canary.refusal, canary.failing_route) == ({"caption": 4, "stream": 6}, "", "")
        goes_on.clear()
        canary.send(BOTH)
        wait_until(lambda: canary.failing_route == STREAM)
        canary.send(BOTH)
        goes_on.set()
        wait(canary._requests.values())
        assert (requests, canary.refusal, canary.failing_route) == ({"caption": 5, "stream": 7}, "", "")


def test_an_empty_caption_does_not_count() -> None:
    """Neither as an answer to the canary nor as an inference."""
    silence = {"text": "", "caption": "", "score": 0.0, "num_tokens": 1, "token_scores": [0.0], "finish_reason": "stop"}
    with tiny_triton() as tiny, closing(Canary(tiny.url("grpc"))) as canary:
        tiny.answer = lambda _: (" ", 0.0, 1)
        send(canary, ["caption"])
        assert canary.refusal == "its caption is empty"
        assert canary.without_empty({"caption": 8, "decoder": 9}) == {"caption": 7, "decoder": 9}
        send(canary)
        assert canary.refusal == "its caption is empty"  # it asked that route alone
        send(canary, all_routes=True)
        assert (canary.refusal, canary.failing_route) == ("its caption is empty", "caption")  # streams have words
        tiny.grow = lambda _: [silence]
        send(canary, all_routes=True)
        assert (canary.refusal, canary.failing_route) == ("its caption is empty", "")
        assert canary.without_empty({"caption": 8, "caption_stream": 8}) == {"caption": 4, "caption_stream": 7}
        tiny.answer = size_of_image
        send(canary, ["caption"])
        assert canary.without_empty({"caption": 9}) == {"caption": 5}


def test_an_empty_caption_counts_where_the_operator_fixed_all_of_it() -> None:
    fixed = OptionDefaults({"prompt": "a book", "include_prompt": False}, frozenset({"prompt", "include_prompt"}))
    with tiny_triton() as tiny, closing(Canary(tiny.url("grpc"), fixed)) as canary:
        tiny.answer = lambda _: (" ", 0.0, 1)
        send(canary, ["caption"])
        assert canary.refusal == ""
        assert canary.without_empty({"caption": 8}) == {"caption": 8}


def test_the_canary_takes_a_new_connection_each_time() -> None:
    with (
        tiny_triton() as tiny,
        proxy(tiny.grpc_port) as between,
        closing(Canary(f"grpc://127.0.0.1:{between.port}")) as canary,
    ):

        def third_came() -> bool:
            send(canary, ["caption"])
            return between.connections >= 3  # gRPC may use a connection again that was closed just now

        wait_until(third_came)


def test_the_longer_a_caption_takes_the_longer_the_pause() -> None:
    takes = 0.0

    def answer(inputs: Inputs) -> Answer:
        time.sleep(takes)
        return size_of_image(inputs)

    with tiny_triton() as tiny, closing(Canary(tiny.url("grpc"))) as canary:
        tiny.answer = answer
        assert canary.pause == IDLE_SECONDS
        for seconds, least in ((0.1, 5), (1.3, MAX_PAUSE_SECONDS)):
            takes = seconds
            send(canary, ["caption"])
            assert least <= canary.pause <= MAX_PAUSE_SECONDS


def test_server_that_is_ready_and_fails(tmp_path: Path) -> None:
    server = TritonServer(repository=write_repository(tmp_path, fail=True), http_port=0, grpc_port=0, metrics_port=0)
    with server, pytest.raises(ServerError, match=r"its first caption failed: .*no words"):
        check_first_caption(server)


def test_server_that_has_no_words(tmp_path: Path) -> None:
    server = TritonServer(repository=write_repository(tmp_path, words=""), http_port=0, grpc_port=0, metrics_port=0)
    with (
        server,
        pytest.raises(
            ServerError,
            match=r"but its first caption is empty: build it with `blipstream build --repository REPOSITORY`$",
        ),
    ):
        check_first_caption(server)
