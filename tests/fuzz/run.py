# SPDX-License-Identifier: Apache-2.0
"""Send a server broken images and broken requests, and check that each gets one clear error and harms nobody.

python tests/fuzz/run.py --images 100000 --requests 20000 --seed 1
"""

import asyncio
import http.client
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import click
import grpc
import grpc.aio
import psutil
from tritonclient.grpc import service_pb2

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "build"), str(ROOT / "loadtest")]

from blipstream.server.proc import stub_model  # noqa: E402
from blipstream.server.triton import TritonServer  # noqa: E402
from raw_requests import caption_request  # noqa: E402
from soak import meet_batches  # noqa: E402
from tests.fuzz.images import broken_image  # noqa: E402
from tests.fuzz.requests import as_http, broken_generate, broken_request, garble  # noqa: E402

DEADLINE = 60.0  # seconds for any answer: slow images wait for each other
IN_FLIGHT = 64
SERVICE = "/inference.GRPCInferenceService"
FINE = {"OK", "INVALID_ARGUMENT"}
# Triton's own: there is no such model, a model that streams was asked for one answer, or there is no message at all
FINE_OF_REQUESTS = FINE | {"NOT_FOUND", "UNIMPLEMENTED"}
BY_HTTP_STATUS = {200: "OK", 400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 405: "UNIMPLEMENTED", 501: "UNIMPLEMENTED"}
# what Triton says over HTTP, with status 500, of JSON that it cannot read
UNREADABLE = re.compile(r"Unable to parse|failed to parse the request JSON|Expected JSON|.*attempt to access JSON")
TRACEBACK = re.compile(r"Traceback|^At:|\.py\(\d+\)", re.MULTILINE)
GROWTH = 1.05  # the most that a process's memory may grow, as a ratio, once it is warm


@dataclass
class Report:
    """Counts of the answers, and a sentence for each that is wrong."""

    answers: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def note(self, what: str, answer: tuple[str, str], fine: set[str]) -> None:
        """Count an answer, and note it as a finding unless its status is fine and its message has no traceback."""
        status, message = answer
        self.answers[status] += 1
        # Fine as well: a broken `timeout` may be short, and slow images may be too many
        late = message.endswith("Request timeout expired") or "requests wait already" in message
        if (status not in fine and not late) or TRACEBACK.search(message):
            self.findings.append(f"{what}: {status} {message[:300]!r}")


async def ask(channel: grpc.aio.Channel, data: bytes, *, streams: bool = False) -> tuple[str, str]:
    """Send a serialised request over gRPC; return the status and the message of the answer."""
    try:
        if not streams:
            await channel.unary_unary(f"{SERVICE}/ModelInfer")(data, timeout=DEADLINE)
            return "OK", ""
        async for answer in channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter([data]), timeout=DEADLINE):
            if message := service_pb2.ModelStreamInferResponse.FromString(answer).error_message:
                return "INVALID_ARGUMENT", message  # in a stream, errors have no status of their own
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def ask_http(port: int, path: str, body: bytes, headers: dict[str, str]) -> tuple[str, str]:
    """Post a body over HTTP; return the status, by gRPC's name, and the message of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, str(error)
    finally:
        connection.close()
    status = BY_HTTP_STATUS.get(answer.status, str(answer.status))
    try:
        message = "" if status == "OK" else str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):
        message = text
    return "INVALID_ARGUMENT" if status == "500" and UNREADABLE.match(message) else status, message


async def send_image(_: TritonServer, channel: grpc.aio.Channel, report: Report, seed: int, number: int) -> None:
    """Ask for a caption of one token for a broken image."""
    name, image = broken_image(seed, number)
    request = caption_request(image, max_tokens=1).SerializeToString()
    report.note(f"image {seed} {number} ({name})", await ask(channel, request), FINE)


async def send_request(server: TritonServer, channel: grpc.aio.Channel, report: Report, seed: int, number: int) -> None:
    """Send a broken request in one of the ways that there are."""
    random = Random(f"way {seed} {number}")
    request = broken_request(seed, number)
    what = f"request {seed} {number} ({request.model_name[:20]}"
    fine = FINE_OF_REQUESTS
    match random.randrange(8):
        case 0 | 1:
            answer = await asyncio.to_thread(ask_http, server.http_port, *as_http(request, random))
            what += ", HTTP)"
        case 2:
            answer = await asyncio.to_thread(ask_http, server.http_port, *broken_generate(seed, number))
            what += ", generate)"
        case 3:
            data = garble(request.SerializeToString(), random)
            answer = await ask(channel, data, streams=random.random() < 0.3)
            what += ", garbled)"
            fine = fine | {"INTERNAL"}  # gRPC itself says so of what it cannot parse
        case _:
            streams = request.model_name == "caption_stream" or random.random() < 0.1
            answer = await ask(channel, request.SerializeToString(), streams=streams)
            what += ", stream)" if streams else ")"
    report.note(what, answer, fine)


Send = Callable[[TritonServer, grpc.aio.Channel, Report, int, int], Coroutine[Any, Any, None]]


async def send_all(server: TritonServer, send: Send, numbers: range, seed: int, report: Report) -> None:
    """Send everything, IN_FLIGHT at a time."""
    waiting = iter(numbers)

    async def work() -> None:
        address, options = server.grpc_url.removeprefix("grpc://"), [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            for number in waiting:
                await send(server, channel, report, seed, number)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


def memory(pid: int) -> dict[str, int]:
    """The bytes that each of the server's processes alone has written, measured as in loadtest/soak.py.

    Image workers are left out, since preprocess starts and ends them.
    """
    processes = [leader := psutil.Process(pid), *leader.children(recursive=True)]
    return {
        f"{model} {each.pid}": sum(area.private_dirty for area in each.memory_maps(grouped=False))
        for each in processes
        if (model := "server" if each == leader else stub_model(each.pid))
    }


def growth(readings: list[dict[str, int]], warm: int) -> Iterator[str]:
    """Processes that grew. Of five equal parts, it compares the medians of part number `warm`, from 0, and the last."""
    fifth = len(readings) // 5
    first, last = readings[warm * fifth :][:fifth], readings[len(readings) - fifth :]
    for process in readings[0].keys() & readings[-1].keys() if fifth else ():
        before, after = (median(reading[process] for reading in part) for part in (first, last))
        if after > GROWTH * before:
            yield f"{process} grew from {before / 2**20:.1f} to {after / 2**20:.1f} MB"


def fuzz(server: TritonServer, pid: int, images: int, requests: int, seed: int, say: Callable[[str], None]) -> Report:
    """Send so many images and requests, and report. Findings about the server as a whole come last."""
    report = Report()
    before = memory(pid)
    # Numbers to send between two readings of the memory, and fifths of all that warm it up. Requests differ much in
    # size, so the largest come late
    kinds = (("images", send_image, images, 5_000, 1), ("requests", send_request, requests, 1_000, 2))
    for what, send, count, step, warm in kinds:
        readings = []
        for start in range(0, count, step):
            began = time.monotonic()
            numbers = range(start, min(start + step, count))
            asyncio.run(send_all(server, send, numbers, seed, report))
            readings.append(memory(pid))
            rate, total = len(numbers) / (time.monotonic() - began), sum(readings[-1].values()) >> 20
            say(f"{what} {numbers.stop}: {rate:.0f} a second, {total} MB, {dict(report.answers)}")
        for grown in growth(readings, warm):
            # tritonserver keeps as much as the largest requests that ever met in it: 165 to 210 MB, in steps, even when
            # the same requests come again
            if not (what == "requests" and grown.startswith("server")):
                report.findings.append(f"{grown} over the {what}")
    if memory(pid).keys() != before.keys():
        report.findings.append("a process of the server died")
    return report


@click.command(context_settings={"show_default": True})
@click.option("--images", default=100_000, help="Broken images to send.")
@click.option("--requests", default=20_000, help="Broken requests to send.")
@click.option("--seed", default=1, help="The same seed gives the same images and requests.")
def main(images: int, requests: int, seed: int) -> None:
    """Start a server with the demo's two checkpoints and fuzz it. The exit status is 1 if there are findings."""
    from blipstream_build.build import build

    with tempfile.TemporaryDirectory() as folder:
        for checkpoint in ("checkpoint", "retrieval-checkpoint"):
            build(str(ROOT / "build/demo" / checkpoint), "auto", Path(folder))
        with TritonServer(Path(folder), config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server:
            meet_batches(server)
            report = fuzz(server, server.pid, images, requests, seed, click.echo)
            server.check()
    for finding in report.findings:
        click.echo(finding)
    click.echo(f"{len(report.findings)} findings")
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
