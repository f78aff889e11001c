# SPDX-License-Identifier: Apache-2.0
"""Measure how much of its capacity a server keeps under ten times that load: `python tests/chaos/overload.py`.

First, users who wait for their answers find the capacity. Then requests come at a multiple of that rate, without
waiting. Server and client get separate processors, since each would take all. Prints JSON.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import click
import grpc
from tritonclient.grpc import service_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(ROOT / "loadtest")]

import raw_requests  # noqa: E402
from blipstream.server.proc import processes_of_group, stub_model  # noqa: E402
from blipstream.server.triton import TritonServer  # noqa: E402

SAMPLES = ROOT / "build/demo/samples"
CONNECTIONS = 4
USERS = 64
ANSWER_SECONDS = 600
TICK_SECONDS = 0.005
STAGES = ("preprocess", "encoder", "decoder")


def caption_request(tokens: int, timeout: float = 0) -> Any:
    """A request for a caption of so many tokens, or of its own length if that is 0; `timeout` seconds, if any."""
    lengths = {"min_tokens": tokens, "max_tokens": tokens} if tokens else {}
    request = raw_requests.caption_request(min(SAMPLES.glob("*.jpg")).read_bytes(), **lengths)
    if timeout:
        request.parameters["timeout"].int64_param = int(timeout * 1e6)
    return request


async def capacity(stub: Any, request: Any, seconds: float) -> float:
    """Captions a second of USERS users who wait for their answers."""
    began = time.monotonic()

    async def use() -> int:
        count = 0
        while time.monotonic() < began + seconds:
            await stub.ModelInfer(request, timeout=ANSWER_SECONDS)
            count += 1
        return count

    counts = await asyncio.gather(*(use() for _ in range(USERS)))
    return sum(counts) / (time.monotonic() - began)


async def flood(stubs: list[Any], request: Any, rate: float, seconds: float) -> list[tuple[float, float, str]]:
    """Send requests at a rate. For each: when the answer came, in seconds from the start, its latency and status."""
    answers: list[tuple[float, float, str]] = []
    began = time.monotonic()

    async def ask(stub: Any) -> None:
        sent, status = time.monotonic(), "OK"
        try:
            await stub.ModelInfer(request, timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            status = f"{error.code().name}: {re.sub(r'.*[,>] ', '', error.details() or '')}"
        answers.append((time.monotonic() - began, time.monotonic() - sent, status))

    tasks: list[asyncio.Task[None]] = []
    while (now := time.monotonic() - began) < seconds:
        tasks += [asyncio.create_task(ask(stubs[n % CONNECTIONS])) for n in range(len(tasks), int(now * rate))]
        await asyncio.sleep(TICK_SECONDS)
    await asyncio.gather(*tasks)
    return answers


def processor_seconds(server: TritonServer) -> dict[str, float]:
    """The processor time of each of the server's processes, by model."""
    used: dict[str, float] = defaultdict(float)
    for pid in processes_of_group(server.pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used[stub_model(pid) or "tritonserver"] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def memory_mb(server: TritonServer) -> int:
    """The resident memory of the server's processes."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes_of_group(server.pid)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") >> 20


async def measure(
    server: TritonServer, factor: float, seconds: float, ramp: float, tokens: int, timeout: float
) -> dict[str, Any]:
    """Find the capacity, then flood the server; return the figures."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = server.grpc_url.removeprefix("grpc://")
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)]
    stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels]
    await capacity(stubs[0], caption_request(tokens), ramp)
    able = await capacity(stubs[0], caption_request(tokens), seconds)
    before, memory, used = server.metrics().inferences, memory_mb(server), processor_seconds(server)
    answers = await flood(stubs, caption_request(tokens, timeout), able * factor, ramp + seconds)
    after, used_then = server.metrics().inferences, processor_seconds(server)
    good = sum(status == "OK" and ramp < at < ramp + seconds for at, _, status in answers) / seconds
    took = defaultdict(list)
    for _, latency, status in answers:
        took[status].append(latency)
    return {
        "capacity": round(able, 1),
        "sent per second": round(len(answers) / (ramp + seconds), 1),
        "goodput / capacity": round(good / able, 2),
        "answers": Counter(status for _, _, status in answers),
        "p99 ms": {status: round(sorted(each)[int(0.99 * len(each))] * 1000) for status, each in took.items()},
        "images through": {stage: after[stage] - before[stage] for stage in STAGES},
        "processor seconds": {name: round(used_then[name] - used[name], 1) for name in used},
        "memory MB before, after": [memory, memory_mb(server)],
    }


@click.command(context_settings={"show_default": True})
@click.option("--repository", type=click.Path(path_type=Path, exists=True), default=ROOT / "model_repository")
@click.option("--factor", default=10.0, help="Load as a multiple of the capacity.")
@click.option("--seconds", default=20.0, help="Seconds to find the capacity, and again to exceed it.")
@click.option("--ramp", default=5.0, help="Seconds before each, for the queues to fill.")
@click.option("--tokens", default=0, help="Length of the captions; 0: their own.")
@click.option("--timeout", default=0.0, help="Timeout that requests carry, in seconds; 0: none.")
def main(repository: Path, factor: float, seconds: float, ramp: float, tokens: int, timeout: float) -> None:
    """Flood a server with requests for captions."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[: -(-len(processors) // 2)])
    with TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server:
        os.sched_setaffinity(0, processors[len(processors) // 2 :])
        click.echo(json.dumps(asyncio.run(measure(server, factor, seconds, ramp, tokens, timeout)), indent=1))


if __name__ == "__main__":
    main()
