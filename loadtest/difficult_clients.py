# SPDX-License-Identifier: Apache-2.0
"""Clients that are hard on a server: they hang up, give up, ask for much, send what is slow to read, or only wait.

Each returns when it is done and counts the answers that it got, by status. What a client sees of a server that dies
meanwhile is counted, too, and not raised.
"""

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from raw_requests import INFER_PATH, caption_request
from slow_images import slow_images

AT_ONCE = 4  # connections that hang up, or slow images, at a time
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0
POLL_SECONDS = 0.005

HANG_UP_REQUESTS = 4  # of each connection
HANG_UP_SECONDS = 0.01  # at most, from the requests to the hang-up
FLOOD_RATE = 300  # requests a second
FILL_SECONDS = 2.0  # for the queue to fill before the first hang-up
GIVE_UP_SECONDS = 0.05, 0.2  # from a request until its client gives it up


@contextmanager
def _connected(grpc_url: str) -> Iterator[Any]:
    """A stub with a connection of its own: channels with equal options would share one."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(grpc_url.removeprefix("grpc://"), options) as channel:
        grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def hang_up(grpc_url: str, image: bytes, times: int, **options: Any) -> Counter[str]:  # noqa: ANN401
    """Connect, ask for captions, alone and in streams, and hang up while the answers come.

    With options that are refused, such as num_beams=99, the answers come at once.
    """

    def use_once(seed: int) -> str:
        rng = np.random.default_rng(seed)
        try:
            with _connected(grpc_url) as stub:
                for _ in range(HANG_UP_REQUESTS):
                    if rng.random() < 0.5:
                        stub.ModelInfer.future(request)
                    else:
                        stub.ModelStreamInfer(iter([request]))
                time.sleep(rng.uniform(0, HANG_UP_SECONDS))
        except grpc.FutureTimeoutError:
            return "no connection"
        return "hung up"

    request = caption_request(image, **options)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(use_once, range(times)))


def hang_up_on_overload(grpc_url: str, image: bytes, times: int) -> Counter[str]:
    """Ask for FLOOD_RATE captions a second, so that most are refused at once, and hang up on others meanwhile."""
    request = caption_request(image)
    enough = threading.Event()

    def flood(stub: Any) -> list[grpc.Future]:  # noqa: ANN401
        calls: list[grpc.Future] = []
        began = time.monotonic()
        while not enough.wait(POLL_SECONDS):
            while len(calls) < (time.monotonic() - began) * FLOOD_RATE:
                calls.append(stub.ModelInfer.future(request, timeout=ANSWER_SECONDS))
        return calls

    with _connected(grpc_url) as stub, ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(flood, stub)
        try:
            time.sleep(FILL_SECONDS)
            answers = hang_up(grpc_url, image, times)
        finally:
            enough.set()
        return answers + Counter(call.code().name for call in flooding.result())


def give_up(grpc_url: str, image: bytes, seconds: float, rate: float) -> Counter[str]:
    """Send `rate` requests a second, and give each up after GIVE_UP_SECONDS."""
    request = caption_request(image)
    rng = np.random.default_rng(0)
    calls: list[grpc.Future] = []
    waiting: list[tuple[float, grpc.Future]] = []
    with _connected(grpc_url) as stub:
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds or waiting:
            for over, call in waiting:
                if now > over:
                    call.cancel()
            waiting = [(over, call) for over, call in waiting if now <= over]
            while len(calls) < min(now - began, seconds) * rate:
                calls.append(stub.ModelInfer.future(request))
                waiting.append((now + rng.uniform(*GIVE_UP_SECONDS), calls[-1]))
            time.sleep(POLL_SECONDS)
        return Counter(call.code().name for call in calls)


def ask_for_much(grpc_url: str, image: bytes, rows: int, beams: int) -> Counter[str]:
    """Send one request that keeps the decoder busy for a while, on a slow machine for longer than anyone waits."""
    with _connected(grpc_url) as stub:
        return Counter([_status(stub, caption_request(image, rows, num_beams=beams))])


def send_compressed(grpc_url: str, image: bytes, times: int) -> Counter[str]:
    """Send gRPC messages that are compressed with gzip."""
    with _connected(grpc_url) as stub:
        return Counter(_status(stub, caption_request(image), compression=grpc.Compression.Gzip) for _ in range(times))


def send_slow_images(grpc_url: str) -> Counter[str]:
    """Send each image of slow_images() once."""
    with _connected(grpc_url) as stub, ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(lambda image: _status(stub, caption_request(image)), slow_images().values()))


def _status(stub: Any, request: Any, **options: Any) -> str:  # noqa: ANN401
    try:
        stub.ModelInfer(request, timeout=ANSWER_SECONDS, **options)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def post(http_url: str, body: bytes, headers: dict[str, str], times: int = 1) -> Counter[str]:
    """Post a body as a request for a caption, each time over a connection of its own."""

    def post_once() -> str:
        connection = http.client.HTTPConnection(http_url.removeprefix("http://"), timeout=ANSWER_SECONDS)
        try:
            connection.request("POST", INFER_PATH, body, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()
        return str(answer.status)

    return Counter(post_once() for _ in range(times))


def post_chunks(http_url: str, chunks: int) -> Counter[str]:
    """Post broken JSON in chunks of one byte."""
    head = [f"POST {INFER_PATH} HTTP/1.1", "Host: here", "Content-Type: application/json", "Transfer-Encoding: chunked"]
    try:
        with socket.create_connection(_address(http_url), timeout=ANSWER_SECONDS) as connection:
            connection.sendall("\r\n".join([*head, "", ""]).encode() + b"1\r\n{\r\n" * chunks + b"0\r\n\r\n")
            status_line = connection.makefile("rb").readline()
    except OSError as error:
        return Counter([type(error).__name__])
    return Counter([(status_line.split() or [b"", b"no answer"])[1].decode()])


def connect_idly(urls: Iterable[str], connections: int, seconds: float) -> Counter[str]:
    """Hold so many connections to each address, and send a byte over each now and then."""
    answers: Counter[str] = Counter()
    with ExitStack() as stack:
        held = []
        for url in urls:
            for _ in range(connections):
                try:
                    held.append(stack.enter_context(socket.create_connection(_address(url), timeout=5)))
                except OSError as error:
                    answers[type(error).__name__] += 1
        answers["connected"] = len(held)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(1)
            for connection in held:
                with suppress(OSError):
                    connection.send(b"x")
    return answers


def _address(url: str) -> tuple[str, int]:
    host, port = url.partition("://")[2].partition("/")[0].split(":")
    return host, int(port)
