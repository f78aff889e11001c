# SPDX-License-Identifier: Apache-2.0
"""Record the server's statistics, processor time and memory under load, as a line of JSON every second.

Triton counts since its start, so what happened between two lines is their difference.
"""

import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import psutil
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

PERIOD = 1.0  # seconds
TIMEOUT = 5.0  # seconds for one reading of the statistics
API_KEY = "BLIPSTREAM_API_KEY"  # where the client, too, finds it
SERVER = "tritonserver"  # name of the process


class Unavailable(Exception):
    """The server gave no statistics; the text is one sentence."""


class Statistics:
    """Triton's statistics and metadata, over the protocol of the URL.

    The key in BLIPSTREAM_API_KEY is sent, if it is set. The client has refused by then to send it where others could
    read it.
    """

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        self.url = url
        parts = urlsplit(url)
        self._grpc = (
            InferenceServerClient(
                parts.netloc, ssl=parts.scheme == "grpcs", root_certificates=str(ca_file) if ca_file else None
            )
            if parts.scheme.startswith("grpc")
            else None
        )
        key = os.environ.get(API_KEY, "").strip()
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None

    def version(self) -> str:
        """The server's version. Raises Unavailable."""
        if self._grpc:
            return str(self._ask_grpc(self._grpc.get_server_metadata)["version"])
        return str(self._ask_http("/v2")["version"])

    def ensembles(self) -> list[str]:
        """The models that are ensembles of others. Raises Unavailable."""
        return [name for name in self.models() if self._metadata(name).get("platform") == "ensemble"]

    def _metadata(self, model: str) -> dict[str, Any]:
        if self._grpc:
            return self._ask_grpc(partial(self._grpc.get_model_metadata, model))
        return self._ask_http(f"/v2/models/{quote(model, safe='')}")

    def models(self) -> dict[str, dict[str, Any]]:
        """What each model has done since the server's start, in counts and nanoseconds. Raises Unavailable."""
        if self._grpc:
            answer = self._ask_grpc(self._grpc.get_inference_statistics)
        else:
            answer = self._ask_http("/v2/models/stats")
        return {model["name"]: _compact(model) for model in answer.get("model_stats", [])}

    def _ask_grpc(self, method: Any) -> dict[str, Any]:  # noqa: ANN401
        try:
            answer: dict[str, Any] = method(as_json=True, headers=self._headers, client_timeout=TIMEOUT)
        except InferenceServerException as exc:
            raise Unavailable(f"{self.url} gave no statistics: {exc.message()}") from exc
        return answer

    def _ask_http(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(self.url.rstrip("/") + path)  # noqa: S310
        for name, value in self._headers.items():
            request.add_unredirected_header(name, value)  # no other host gets the key
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT, context=self._tls) as answer:  # noqa: S310
                content: dict[str, Any] = json.load(answer)
        except (OSError, ValueError) as exc:
            raise Unavailable(f"{self.url} gave no statistics: {exc}") from exc
        return content


def _compact(model: dict[str, Any]) -> dict[str, Any]:
    """Pick the counters that the report needs. gRPC's JSON leaves out zeros and writes large numbers as strings."""
    stats = model.get("inference_stats", {})

    def read(name: str, part: str) -> int:
        return int(stats.get(name, {}).get(part, 0))

    return {
        "success": read("success", "count"),
        "fail": read("fail", "count"),
        "success_ns": read("success", "ns"),
        "queue": read("queue", "count"),
        "queue_ns": read("queue", "ns"),
        "compute": read("compute_infer", "count"),
        "compute_ns": sum(read(f"compute_{part}", "ns") for part in ("input", "infer", "output")),
        "batches": {
            str(batch["batch_size"]): int(batch.get("compute_infer", {}).get("count", 0))
            for batch in model.get("batch_stats", [])
        },
    }


class Usage:
    """Processor time and memory of processes that come and go."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def read(self, pids: Iterable[int]) -> dict[str, float]:
        """Cores used since the last reading, and memory in MB; shared pages are divided among their processes."""
        cores = memory = 0.0
        known = {}
        for pid in pids:
            with suppress(psutil.Error):  # the process may have ended
                process = known[pid] = self._known.get(pid) or psutil.Process(pid)
                cores += process.cpu_percent() / 100
                memory += _memory(process) / 2**20
        self._known = known
        return {"processes": len(known), "cores": round(cores, 3), "memory_mb": round(memory, 1)}


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:  # another user's process
        return int(process.memory_info().rss)


def local_server(url: str) -> int | None:
    """The process group of the tritonserver that listens at an address, or None if it is not visible from here."""
    parts = urlsplit(url)
    if not parts.hostname or not _is_local(parts.hostname):
        return None
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == parts.port and connection.pid:
                process = psutil.Process(connection.pid)
                return os.getpgid(process.pid) if process.name() == SERVER else None
    return None


def _is_local(host: str) -> bool:
    with suppress(OSError):
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
        mine = {address.address for each in psutil.net_if_addrs().values() for address in each}
        return any(address in mine or ipaddress.ip_address(address).is_loopback for address in map(str, found))
    return False


def group_members(group: int) -> Iterator[int]:
    """The processes of a process group."""
    for pid in psutil.pids():
        with suppress(OSError):  # the process may have ended
            if os.getpgid(pid) == group:
                yield pid


def family(pids: Iterable[int]) -> Iterator[int]:
    """The processes and their descendants."""
    for pid in pids:
        with suppress(psutil.Error):
            yield pid
            yield from (child.pid for child in psutil.Process(pid).children(recursive=True))


class Collector:
    """Writes a line a second to a file, in a thread, inside a `with` block."""

    def __init__(self, path: Path, statistics: Statistics, group: int | None, load: list[int]) -> None:
        self._path = path
        self._statistics = statistics
        self._group = group  # the server's process group, if it is on this machine
        self._load = load  # pids of Locust's processes
        self._usage = {"server": Usage(), "load": Usage()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._path.open("w", encoding="utf-8") as file:
            due = time.monotonic()
            while True:
                stopping = self._stop.is_set()  # then this line is the last
                file.write(json.dumps(self._line()) + "\n")
                file.flush()
                if stopping:
                    return
                due = max(due + PERIOD, time.monotonic())
                self._stop.wait(due - time.monotonic())

    def _line(self) -> dict[str, Any]:
        line: dict[str, Any] = {"time": time.time()}
        try:
            line["models"] = self._statistics.models()
        except Unavailable as exc:
            line["unavailable"] = str(exc)
        if self._group is not None:
            line["server"] = self._usage["server"].read(group_members(self._group))
        line["load"] = self._usage["load"].read(family(self._load))
        line["machine_cores"] = round(psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1), 3)
        return line
