# SPDX-License-Identifier: Apache-2.0
"""Streams from the real server: their text, and that a client that goes leaves nothing behind."""

import asyncio
import contextlib
import gc
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from blipstream.server.triton import TritonServer
from blipstream_client import AsyncClient, Caption, Client, InvalidRequest, Options, Piece, ServerUnreachable

ROOT = Path(__file__).parents[2]

MIXED: list[Options] = [
    {},
    {"prompt": "two"},
    {"prompt": "a dog", "include_prompt": False},
    {"max_tokens": 3},
    {"min_tokens": 25, "no_repeat_ngram_size": 3},
    {"do_sample": True, "temperature": 1.5, "seed": 2**53 + 1},
    {"do_sample": True, "num_captions": 3, "seed": 1},
    {"num_beams": 3, "num_captions": 2, "length_penalty": 0.5},
    {"resize_mode": "letterbox"},
]
LONG: Options = {"min_tokens": 60, "max_tokens": 60}


@pytest.fixture
def url(server: TritonServer, scheme: str) -> str:
    return str(getattr(server, f"{scheme}_url"))


@pytest.fixture(scope="module")
def images(samples: dict[str, str]) -> list[bytes]:
    return [(ROOT / "build" / "demo" / "samples" / name).read_bytes() for name in samples]


def metric(server: TritonServer, name: str) -> float:
    with urllib.request.urlopen(server.metrics_url) as answer:
        found = re.search(rf'^{name}{{model="caption_stream"}} (\S+)$', answer.read().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


@contextlib.contextmanager
def rows_are_freed(server: TritonServer, most_tokens: float) -> Iterator[None]:
    """Work that begins in the block ends soon after it, long before all its tokens are generated."""
    before = metric(server, "blipstream_tokens_total")
    yield
    deadline = time.monotonic() + 30
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < 0.5:  # a request may still be in preprocess or encoder
        assert time.monotonic() < deadline
        if metric(server, "blipstream_rows") or metric(server, "blipstream_waiting"):
            idle_since = time.monotonic()
        time.sleep(0.05)
    assert metric(server, "blipstream_tokens_total") - before < most_tokens


def assert_equal(pieces: list[Piece], expected: Caption) -> None:
    whole = pieces[-1].caption
    assert whole
    assert "".join(piece.text for piece in pieces) == whole.text == expected.text
    assert [each.text for each in whole.alternatives] == [each.text for each in expected.alternatives]
    assert whole.num_tokens == expected.num_tokens
    assert whole.score == pytest.approx(expected.score, abs=0.01)
    assert sum(piece.score for piece in pieces) == pytest.approx(sum(whole.token_scores), abs=1e-4)
    assert whole.finish_reason in ("stop", "length")


@pytest.fixture(scope="module")
def exact(f32_artifacts: Path) -> Iterator[TritonServer]:
    """A server in f32, where a caption does not depend on the batch at all. The last test stops it."""
    with TritonServer(repository=f32_artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def stream(url: str, asked: list[tuple[bytes, Options]], together: int) -> list[list[Piece]]:
    """The pieces of each image, so many at once, by Client."""
    with Client(url) as client, ThreadPoolExecutor(together) as threads:
        return list(threads.map(lambda each: list(client.stream(each[0], **each[1])), asked))


def stream_async(url: str, asked: list[tuple[bytes, Options]], together: int) -> list[list[Piece]]:
    """The same by AsyncClient."""

    async def gather() -> list[list[Piece]]:
        turn = asyncio.Semaphore(together)
        async with AsyncClient(url) as client:

            async def one(image: bytes, options: Options) -> list[Piece]:
                async with turn:
                    return [piece async for piece in client.stream(image, **options)]

            return await asyncio.gather(*(one(*each) for each in asked))

    return asyncio.run(gather())


@pytest.mark.parametrize("together", [pytest.param(1, marks=pytest.mark.full), 16])
def test_pieces_join_to_the_unary_caption(exact: TritonServer, images: list[bytes], together: int) -> None:
    """One after another, and 64 at once: 16 by each client over each protocol."""
    asked = [(images[i % len(images)], MIXED[i % len(MIXED)]) for i in range(max(together, len(MIXED)))]
    with Client(exact.grpc_url) as client:
        expected = [client.caption(image, **options) for image, options in asked]
    ways = [(way, url) for way in (stream, stream_async) for url in (exact.grpc_url, exact.http_url)]
    with ThreadPoolExecutor(1 if together == 1 else len(ways)) as threads:
        for found in threads.map(lambda way: way[0](way[1], asked, together), ways):
            for pieces, caption, (_, options) in zip(found, expected, asked, strict=True):
                assert_equal(pieces, caption)
                assert (len(pieces) == 1) == ("num_captions" in options)


def test_the_servers_errors(url: str, images: list[bytes]) -> None:
    with Client(url) as client:
        with pytest.raises(InvalidRequest, match="must fit 64 positions"):
            list(client.stream(images[0], max_tokens=400))
        with pytest.raises(InvalidRequest, match="temperature must be between"):
            list(client.stream(images[0], do_sample=True, temperature=float("nan")))
        with pytest.raises(InvalidRequest, match="image must be"):
            list(client.stream(b"no image"))


def leave(client: Client, image: bytes) -> None:
    """Leave the loop in each possible way."""
    for _ in client.stream(image, **LONG):
        break
    with contextlib.suppress(LookupError):
        for _ in client.stream(image, **LONG):
            raise LookupError
    pieces = client.stream(image, **LONG)
    next(pieces)
    pieces.close()
    forgotten: list[object] = [client.stream(image, **LONG)]
    next(forgotten[0])  # type: ignore[call-overload]
    forgotten.append(forgotten)  # a cycle, which only the garbage collector finds
    del forgotten
    gc.collect()


async def leave_async(client: AsyncClient, image: bytes) -> None:
    async for _ in client.stream(image, **LONG):
        break
    with contextlib.suppress(LookupError):
        async for _ in client.stream(image, **LONG):
            raise LookupError
    pieces = client.stream(image, **LONG)
    await anext(pieces)
    await pieces.aclose()

    async def read() -> None:
        async for _ in client.stream(image, **LONG):
            begun.set()

    begun = asyncio.Event()
    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_leaving_the_loop_frees_the_rows(server: TritonServer, url: str, images: list[bytes]) -> None:
    async def rounds() -> None:
        async with AsyncClient(url) as client:
            for _ in range(2):
                await leave_async(client, images[0])

    with rows_are_freed(server, 2 * 2 * 4 * 60 / 2), Client(url) as client:
        for _ in range(2):
            leave(client, images[0])
        asyncio.run(rounds())
        assert client.caption(images[1]).text == "".join(piece.text for piece in client.stream(images[1]))
    assert metric(server, "blipstream_first_text_seconds_count") > 0
    assert metric(server, "blipstream_next_text_seconds_count") > 0


KILLED = """
import asyncio, sys
from blipstream_client import AsyncClient

async def read(client):
    async for piece in client.stream(sys.argv[2], min_tokens=60, max_tokens=60):
        print(piece.text, flush=True)

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        await asyncio.gather(*(read(client) for _ in range(32)))

asyncio.run(main())
"""


def test_a_client_that_is_killed(server: TritonServer, url: str) -> None:
    command = [sys.executable, "-c", KILLED, url, str(ROOT / "build" / "demo" / "samples" / "a-book.jpg")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    with rows_are_freed(server, 32 * 60), subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as client:
        assert client.stdout
        client.stdout.readline()
        client.kill()


def test_a_slow_reader_delays_no_other(url: str, images: list[bytes]) -> None:
    with Client(url) as client, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(contextlib.closing(client.stream(images[0], **LONG))) for _ in range(4)]
        first = [next(pieces).text for pieces in slow]
        for image in images:
            assert list(client.stream(image))[-1].caption
        expected = client.caption(images[0], **LONG).text
        for text, pieces in zip(first, slow, strict=True):
            assert text + "".join(piece.text for piece in pieces) == expected


def test_a_server_that_is_stopped_answers_what_it_accepted(exact: TritonServer, images: list[bytes]) -> None:
    """Over HTTP it accepts no new request meanwhile."""
    ended: list[Caption | None] = []
    begun = threading.Barrier(9)

    def read(url: str) -> None:
        with Client(url) as client:
            pieces = client.stream(images[0], **LONG)
            next(pieces)
            begun.wait(60)
            ended.extend(piece.caption for piece in pieces if piece.caption)

    threads = [threading.Thread(target=read, args=[(exact.grpc_url, exact.http_url)[i % 2]]) for i in range(8)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    os.kill(exact.pid, signal.SIGTERM)
    for thread in threads:
        thread.join()
    with Client(exact.http_url, retries=0) as client, pytest.raises(ServerUnreachable):
        list(client.stream(images[0]))
    assert [caption and caption.num_tokens for caption in ended] == [60] * 8


def processes(server: TritonServer) -> dict[str, psutil.Process]:
    """tritonserver, and the process of the model that streams."""
    root = psutil.Process(server.pid)
    stub = next(each for each in root.children() if any("caption_stream" in word for word in each.cmdline()))
    return {"tritonserver": root, "caption_stream": stub}


@pytest.mark.full
def test_a_thousand_streams_dropped_at_random_points(
    server: TritonServer, images: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Half over HTTP, sixteen at once: rows are freed, memory does not grow, and the next caption is right."""
    rng = random.Random(0)
    memory, pieces = [], Counter[int]()

    async def drop(client: AsyncClient, turn: asyncio.Semaphore) -> None:
        count = 0
        async with turn:
            with contextlib.suppress(TimeoutError):
                async with (
                    asyncio.timeout(rng.uniform(0, 1)),
                    contextlib.aclosing(client.stream(rng.choice(images), **LONG)) as stream,
                ):
                    async for _ in stream:
                        count += 1
        pieces[count] += 1

    async def drop_all() -> None:
        turn = asyncio.Semaphore(16)
        async with AsyncClient(server.grpc_url) as one, AsyncClient(server.http_url) as other:
            for _ in range(5):
                await asyncio.gather(*(drop(rng.choice([one, other]), turn) for _ in range(200)))
                memory.append({name: each.memory_info().rss for name, each in processes(server).items()})

    with rows_are_freed(server, 1000 * 60):
        asyncio.run(drop_all())
    with capsys.disabled():
        print("\npieces before the drop, and how many streams:", dict(sorted(pieces.items())))
        print("RSS in MB:", [{name: round(size / 2**20, 1) for name, size in each.items()} for each in memory])
    with Client(server.grpc_url) as one, Client(server.http_url) as other:
        text = one.caption(images[0]).text
        for client in (one, other):
            assert "".join(piece.text for piece in client.stream(images[0])) == text
    assert pieces[0] > 0 < sum(pieces[count] for count in range(1, 60))
    for name, size in memory[-1].items():
        assert size <= 1.05 * memory[0][name], name
