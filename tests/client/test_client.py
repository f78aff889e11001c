# SPDX-License-Identifier: Apache-2.0
import asyncio
import gc
import io
import math
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from blipstream_client import (
    AsyncClient,
    BlipstreamError,
    Caption,
    Client,
    ImageLike,
    InvalidImage,
    InvalidRequest,
    RequestCancelled,
    ServerUnreachable,
)
from tests.support.tiny_triton import Answer, Gate, Inputs, Refusal, TinyTriton, size_of_image
from tests.support.waiting import wait_until


def worker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("blipstream")]


@pytest.fixture
def gate(tiny: TinyTriton) -> Iterator[Gate]:
    gate = Gate()
    tiny.answer = gate
    yield gate
    gate.opened.set()


def test_caption(client: Client) -> None:
    assert client.caption(b"12345") == Caption("5 bytes", -1.5, 2, (-0.75, -0.75))


def test_options_travel_as_tensors(tiny: TinyTriton, client: Client) -> None:
    seen: list[Inputs] = []

    def record(inputs: Inputs) -> Answer:
        seen.append(inputs)
        return size_of_image(inputs)

    tiny.answer = record
    client.caption(b"image", prompt="ein Bär", max_tokens=7, resize_mode=None)
    (inputs,) = seen
    assert {name: (tensor.shape, tensor[0, 0]) for name, tensor in inputs.items()} == {
        "image": ((1, 1), b"image"),
        "prompt": ((1, 1), "ein Bär".encode()),
        "max_tokens": ((1, 1), 7),
    }
    assert inputs["max_tokens"].dtype == np.int32


def test_captions_in_any_script(tiny: TinyTriton, client: Client) -> None:
    tiny.answer = lambda _: ("熊 🐻", 0.0, 2)
    assert client.caption(b"image").text == "熊 🐻"


def test_is_ready(tiny: TinyTriton, client: Client) -> None:
    assert client.is_ready()
    tiny.ready = False
    assert not client.is_ready()


def test_a_closed_client_says_so(client: Client) -> None:
    client.close()
    client.close()
    with pytest.raises(RequestCancelled, match="The client is closed"):
        client.caption(b"image")


def test_a_closed_client_sends_nothing(tiny: TinyTriton, scheme: str, kind: str) -> None:
    async def ask() -> list[Caption | BlipstreamError]:
        client = AsyncClient(tiny.url(scheme))
        await client.aclose()
        return [result async for result in client.caption_many([b"image"] * 3)]

    client = Client(tiny.url(scheme))
    client.close()
    results = asyncio.run(ask()) if kind == "async" else list(client.caption_many([b"image"] * 3))
    assert [type(result) for result in results] == [RequestCancelled] * 3
    assert tiny.headers == []


def test_closing_ends_many_in_flight(tiny: TinyTriton, scheme: str, kind: str, gate: Gate) -> None:
    """And cancels those that would come after them."""
    images = [b"image"] * 9

    async def ask(client: AsyncClient) -> list[Caption | BlipstreamError]:
        return [result async for result in client.caption_many(images, max_in_flight=4)]

    async def close() -> list[Caption | BlipstreamError]:
        async with AsyncClient(tiny.url(scheme)) as client:
            asking = asyncio.create_task(ask(client))
            await asyncio.to_thread(wait_until, lambda: gate.waiting == 4)
        return await asking

    if kind == "async":
        results = asyncio.run(close())
    else:
        with ThreadPoolExecutor(1) as threads:
            with Client(tiny.url(scheme)) as client:
                asking = threads.submit(list, client.caption_many(images, max_in_flight=4))
                wait_until(lambda: gate.waiting == 4)
            results = asking.result()
        wait_until(lambda: not worker_threads())
    assert [type(result) for result in results] == [RequestCancelled] * 9
    assert gate.waiting == 4  # closing did not wait for them


def test_closing_ends_a_request_in_flight(client: Client, gate: Gate) -> None:
    def close_when_waiting() -> None:
        wait_until(lambda: gate.waiting == 1)
        client.close()

    thread = threading.Thread(target=close_when_waiting)
    thread.start()
    with pytest.raises(RequestCancelled, match="before the answer came"):
        client.caption(b"image")
    thread.join()


def test_threads_may_share_a_client(client: Client) -> None:
    results: list[Caption] = []

    def ask() -> None:
        results.extend(client.caption(b"image") for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [Caption("5 bytes", -1.5, 2, (-0.75, -0.75))] * 40


def test_many_come_in_order_with_errors_as_values(tiny: TinyTriton, client: Client) -> None:
    def slowest_first(inputs: Inputs) -> Answer:
        size = len(inputs["image"][0, 0])
        time.sleep(max(0.0, 0.1 - 0.01 * size))
        if size == 3:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "three is not an image")
        return size_of_image(inputs)

    tiny.answer = slowest_first
    results = list(client.caption_many([b"1", b"22", b"333", "nowhere.jpg", b"55555"], max_tokens=5))
    assert [result.text if isinstance(result, Caption) else type(result) for result in results] == [
        "1 bytes",
        "2 bytes",
        InvalidRequest,
        InvalidImage,
        "5 bytes",
    ]


@pytest.mark.full
def test_thousands(client: Client) -> None:
    sizes = [1 + i % 50 for i in range(2000)]
    texts = [result.text for result in client.caption_many(bytes(size) for size in sizes)]  # type: ignore[union-attr]
    assert texts == [f"{size} bytes" for size in sizes]


def test_no_images(client: Client) -> None:
    assert list(client.caption_many([])) == []


@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_requests_in_flight_are_bounded_and_images_taken_lazily(client: Client, gate: Gate, max_in_flight: int) -> None:
    taken = []

    def images() -> Iterator[bytes]:
        for i in range(20):
            taken.append(i)
            yield b"image"

    results = client.caption_many(images(), max_in_flight=max_in_flight)
    assert taken == []
    consumed: list[Caption | BlipstreamError] = []
    thread = threading.Thread(target=lambda: consumed.extend(results))
    thread.start()
    wait_until(lambda: gate.waiting == max_in_flight)
    assert len(taken) == max_in_flight
    gate.opened.set()
    thread.join()
    assert consumed == [Caption("5 bytes", -1.5, 2, (-0.75, -0.75))] * 20
    assert gate.most_waiting == max_in_flight


def test_results_do_not_wait_for_a_slow_source(client: Client) -> None:
    """A camera's first caption comes long before its 32nd image."""
    taken = []

    def camera() -> Iterator[bytes]:
        for i in range(100):
            taken.append(i)
            yield b"image"
            time.sleep(0.05)

    results = client.caption_many(camera())
    next(results)
    results.close()
    assert len(taken) < 20


def test_leaving_early_cancels_and_leaves_no_threads(tiny: TinyTriton, client: Client, gate: Gate) -> None:
    def answer(inputs: Inputs) -> Answer:
        if inputs["image"][0, 0] != b"first":
            return gate(inputs)
        wait_until(lambda: gate.waiting > 0)
        return size_of_image(inputs)

    tiny.answer = answer
    results = client.caption_many([b"first"] + [b"image"] * 50, max_in_flight=8)
    assert next(results) == Caption("5 bytes", -1.5, 2, (-0.75, -0.75))
    results.close()
    wait_until(lambda: not worker_threads())
    assert gate.waiting > 0  # closing did not wait for them
    assert client.is_ready()  # on another connection


def test_errors_name_their_image(tiny: TinyTriton, scheme: str, kind: str) -> None:
    def refuse(_: Inputs) -> Answer:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no image")

    tiny.answer = refuse
    images: list[ImageLike] = [b"1", Path("nowhere.jpg"), "http://name:password@127.0.0.1/a.jpg"]

    async def ask() -> list[Any]:
        async with AsyncClient(tiny.url(scheme)) as client:
            many = [result async for result in client.caption_many(images)]
            with pytest.raises(InvalidImage) as caught:
                await client.caption("nowhere.jpg")
            return [*many, caught.value]

    def wait() -> list[Any]:
        with Client(tiny.url(scheme)) as client:
            many = list(client.caption_many(images))
            with pytest.raises(InvalidImage) as caught:
                next(client.stream("nowhere.jpg"))
            return [*many, caught.value]

    errors = asyncio.run(ask()) if kind == "async" else wait()
    named = ["bytes, number 1", "nowhere.jpg, number 2", "http://127.0.0.1/a.jpg, number 3", "nowhere.jpg"]
    assert [error.image for error in errors] == named


def test_errors_of_the_source_are_the_callers(client: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield b"image"
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(client.caption_many(broken()))
    wait_until(lambda: not worker_threads())


@pytest.mark.parametrize(
    "single", ["a.jpg", b"image", bytearray(b"image"), Path("a.jpg"), io.BytesIO(b"image"), Image.new("L", (8, 6))]
)
@pytest.mark.parametrize("client_class", [Client, AsyncClient])
def test_a_single_image_is_not_taken_for_many(client_class: Any, single: Any) -> None:
    words = f"Expected several images, got one {type(single).__name__}: put it in a list"
    with pytest.raises(InvalidRequest, match=words):
        client_class().caption_many(single)


def test_wrong_options_are_raised_at_once(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="max_in_flight must be a whole number of at least 1, got 0"):
        client.caption_many([], max_in_flight=0)
    with pytest.raises(InvalidRequest, match="max_tokens must be a whole number"):
        client.caption_many([], max_tokens="7")  # type: ignore[arg-type]


def test_errors_do_not_keep_their_images_alive(scheme: str, closed_port: int) -> None:
    array = np.zeros((4, 4, 3), np.uint8)
    alive = weakref.ref(array)
    with Client(f"{scheme}://127.0.0.1:{closed_port}") as client:
        (error,) = client.caption_many(iter([array]))
    del array
    gc.collect()
    assert isinstance(error, ServerUnreachable)
    assert isinstance(error.__cause__, Exception)
    assert alive() is None


def test_captions_leave_nothing_for_the_garbage_collector(tiny: TinyTriton, scheme: str) -> None:
    """Else memory would grow between two full collections in a program that sends millions."""
    gc.collect()

    async def ask(url: str) -> int:
        async with AsyncClient(url) as client:
            return await collected(client.caption)

    async def collected(caption: Callable[[bytes], Awaitable[Caption]]) -> int:
        for number in range(60):
            if number == 10:  # the first ones connect
                gc.collect()
                gc.disable()
            await caption(b"12345")
        return gc.collect()

    async def at_once(image: bytes) -> Caption:
        return client.caption(image)

    try:
        with Client(tiny.url(scheme)) as client:
            assert asyncio.run(collected(at_once)) < 50
        assert asyncio.run(ask(tiny.url(scheme))) < 50
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("url", [None, 3, ["grpc://a"]]),
        ("model", [None, 3]),
        ("timeout", ["5", None, True, math.nan, 1j]),
        ("retries", ["3", None, True, 1.5, math.nan]),
        ("keepalive", ["5", True]),
        ("max_side", ["5", math.nan, True, 1.5]),
        ("headers", [{"a": 3}, {3: "a"}, "a:b", [("a", "b")]]),
        ("ca_file", [3, b"ca.pem"]),
        ("allow_private_urls", ["no", 1, None]),
    ],
)
@pytest.mark.parametrize("client_class", [Client, AsyncClient])
def test_arguments_of_wrong_types_are_one_sentence(client_class: Any, name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequest, match=r"^(A header's name and value|\w+) must be [^\n]* got "):
            client_class(**{name: value})


@pytest.mark.parametrize("value", ["a", None, True, 1.5])
def test_max_in_flight_is_a_whole_number(value: Any) -> None:
    with Client() as client, pytest.raises(InvalidRequest, match="max_in_flight must be a whole number of at least 1"):
        client.caption_many([], max_in_flight=value)
    with pytest.raises(InvalidRequest, match="max_in_flight must be a whole number of at least 1"):
        AsyncClient().caption_many([], max_in_flight=value)


def test_numpy_numbers_are_accepted() -> None:
    numbers: Any = {"timeout": np.float32(5), "retries": np.int64(2), "max_side": np.int32(64)}
    Client(**numbers).close()
