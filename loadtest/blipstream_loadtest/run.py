# SPDX-License-Identifier: Apache-2.0
"""Run Locust against a server, record the server meanwhile, and write a report for capacity planning."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blipstream.command_line import option
from blipstream.server.triton import TritonServer
from blipstream_bench.machine import machine, versions
from blipstream_client import BlipstreamError as ClientError
from blipstream_client import Client
from blipstream_loadtest import mix, report
from blipstream_loadtest.collector import Collector, Statistics, Unavailable, local_server
from blipstream_loadtest.machines import Demand
from blipstream_loadtest.options import LOCUSTFILE
from blipstream_loadtest.progress import Progress
from blipstream_loadtest.results import LoadTest, RequestLog, Slo
from blipstream_loadtest.shapes import END, PAUSE, SILENCE, STEPS, Load, most_users

SCHEMES = ("grpc", "grpcs", "http", "https")
PROTOCOLS = {"grpc": ("grpc",), "http": ("http",), "both": ("grpc", "http")}
PACKAGES = ("locust", "blipstream", "blipstream-client", "tritonclient", "grpcio")
DRAIN_SECONDS = 60.0  # that Locust may take to end, beyond the timeout of a request
GRACE_SECONDS = 2.0  # for the answers of users who stop, beyond the timeout of a request, so that these are recorded
START_SECONDS = 120.0  # that local workers may take to start
RECENT_SECONDS = 5.0  # that the figures count which are shown while Locust runs


class LoadTestError(Exception):
    """There is no result; the text is one sentence."""


@dataclass(frozen=True)
class LoadPlan:
    """What to run."""

    load: Load
    slo: Slo
    demand: Demand | None
    timeout: float
    mix: Path
    workers: int  # Locust processes on this machine beside the master
    remote_workers: int  # Locust processes on other machines, which connect to the master
    master_port: int  # where workers connect; 0: any free port


@dataclass(frozen=True)
class Target:
    """The server to load."""

    urls: tuple[str, ...]  # users take them in turn
    what: str  # the server in words, for the report
    group: int | None  # the server's process group, if it is visible from here
    ca_file: Path | None = None  # certificates to trust instead of the well-known ones, PEM

    @property
    def host(self) -> str:
        """The URLs as Locust's --host takes them."""
        return ",".join(self.urls)


def running(host: str, ca_file: Path | None = None) -> Target:
    """A server that runs already; `host` is its URL, or several with commas. Nothing is sent.

    Raises LoadTestError, InvalidURL or InvalidCertificate if they cannot be used.
    """
    urls = tuple(url.strip() for url in host.split(","))
    for url in urls:
        if url.partition("://")[0] not in SCHEMES or "://" not in url:
            raise LoadTestError(
                "Expected an address such as grpc://localhost:8001, or several such as grpc://a:8001,http://b:8000, "
                f"got {url!r}; the schemes are {', '.join(SCHEMES)}"
            )
        Client(url, ca_file=ca_file).close()
    return Target(urls, f"the server at {host}", local_server(urls[0]), ca_file and ca_file.resolve())


@contextmanager
def embedded(repository: Path, config: str, protocol: str) -> Iterator[Target]:
    """Start a server for the load test. Raises ServerError."""
    with TritonServer(repository, config=config, http_port=0, grpc_port=0, metrics_port=0) as server:
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        chosen = tuple(urls[each] for each in PROTOCOLS[protocol])
        what = f"an embedded server with configuration {config}"
        yield Target(chosen, what, server.pid)


def new_folder(output: Path, name: str) -> Path:
    """The folder for the results. Raises LoadTestError if the name is no name."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise LoadTestError(f"a name has letters, digits, and the characters . _ and -, got {name!r}")
    return (output / name).resolve()


def load_test(plan: LoadPlan, target: Target, folder: Path, progress: Progress) -> LoadTest:
    """Warm up, run the load and write the report. Raises LoadTestError, RecordError or OSError."""
    with progress.waiting("sending one request of each kind"):
        _warm_up(target, plan)
    folder.mkdir(parents=True, exist_ok=True)
    conditions = json.dumps(_conditions(plan, target, folder.name), indent=2)
    (folder / "run.json").write_text(f"{conditions}\n", encoding="utf-8")
    progress.tell(_announced(plan))
    _run_locust(plan, target, folder, progress)
    with progress.waiting("writing the report"):
        return report.write(folder)


def _announced(plan: LoadPlan) -> str:
    """What is about to happen, in a sentence."""
    load, p95_ms = plan.load, plan.slo.p95_ms
    if load.shape != STEPS:
        return f"{load.shape} load with up to {most_users(load)} users for {load.seconds:g} s:"
    if p95_ms is None:
        return f"steps of {load.seconds:g} s, until throughput stops growing (no {option('p95-ms')} bounds latency):"
    return f"steps of {load.seconds:g} s, until one answer in 20 takes longer than {p95_ms:g} ms:"


def _warm_up(target: Target, plan: LoadPlan) -> None:
    """Send one request of each kind and size, so that no first request is measured and a refused mix is found out.

    Raises LoadTestError if one fails.
    """
    for url in target.urls:
        with Client(url, timeout=plan.timeout, ca_file=target.ca_file) as client:
            for request in mix.load(plan.mix).one_of_each():
                try:
                    request.ask(client)
                except ClientError as exc:
                    raise LoadTestError(f"the first {request.kind!r} request of {plan.mix} failed: {exc}") from exc


def _run_locust(plan: LoadPlan, target: Target, folder: Path, progress: Progress) -> None:
    """Run Locust and record the server meanwhile. Raises LoadTestError if Locust fails."""
    load = plan.load
    port = plan.master_port or _free_port()
    options = [
        *("--host", target.host, "--shape", load.shape, "--run-time", f"{load.seconds:g}s", "--rate", f"{load.rate:g}"),
        *("--users", str(most_users(load))),  # else Locust has one
        *("--timeout", f"{plan.timeout:g}", "--stop-timeout", f"{plan.timeout + GRACE_SECONDS:g}"),
        *("--mix", str(plan.mix.resolve())),
        *("--record", str(folder), "--csv", str(folder / "locust"), "--html", str(folder / "locust.html")),
        *("--headless", "--only-summary", "--exit-code-on-error", "0", "--loglevel", "WARNING"),
    ]
    optional = {"--p95-ms": plan.slo.p95_ms, "--error-rate": plan.slo.error_rate, "--ca-file": target.ca_file}
    for name, value in optional.items():
        options += [] if value is None else [name, str(value)]
    waited = plan.workers + plan.remote_workers
    if waited:
        host = "*" if plan.remote_workers else "127.0.0.1"
        options += ["--master", "--expect-workers", str(waited), "--master-bind-port", str(port)]
        options += ["--master-bind-host", host]
        options += [] if plan.remote_workers else ["--expect-workers-max-wait", f"{START_SECONDS:g}"]
    worker = ["--worker", "--master-port", str(port), "--mix", str(plan.mix.resolve()), "--loglevel", "WARNING"]
    commands = [options, *[worker] * plan.workers]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "locust.log").open("wb"))
        processes = [stack.enter_context(_locust(command, folder, log)) for command in commands]
        stack.enter_context(
            Collector(
                folder / "server.jsonl",
                Statistics(target.urls[0], target.ca_file),
                target.group,
                [each.pid for each in processes],
            )
        )
        status = _wait(processes[0], plan, folder, progress)
    if status:
        lines = (folder / "locust.log").read_text(encoding="utf-8", errors="replace").splitlines()
        raise LoadTestError(
            f"Locust ended with status {status}: {lines[-1] if lines else 'silently'} ({folder}/locust.log)"
        )


@contextmanager
def _locust(options: list[str], folder: Path, log: Any) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401
    """Start Locust with these options alone, without those that it would read from the environment and from files."""
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    environment["HOME"] = str(folder)
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()


def _wait(process: subprocess.Popen[bytes], plan: LoadPlan, folder: Path, progress: Progress) -> int:
    """Wait for Locust, and show how it goes. Returns its exit status. Raises LoadTestError if it does not end."""
    live = Live(folder, plan.load)
    while True:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(1.0)
            progress.clear()
            return status
        progress.show(live.line(time.time()))
        if live.overdue(time.time()) > plan.timeout + DRAIN_SECONDS:
            raise LoadTestError(f"Locust did not end {DRAIN_SECONDS:g} s after the last request's timeout")


class Live:
    """How a load test goes, from the files that Locust is writing."""

    def __init__(self, folder: Path, load: Load) -> None:
        self._folder = folder
        self._load = load
        self._offset = 0  # in requests.csv, up to which it is read
        self._header: list[str] = []
        self._failed = 0
        self._recent: deque[dict[str, str]] = deque()

    def line(self, now: float) -> str:
        """The newest figures, in less than 80 columns."""
        stages = self._stages()
        if not stages:
            return "starting Locust ..."
        name, users, _ = stages[-1]
        self._read(now)
        window = RequestLog(self._recent, now).window("", users, -RECENT_SECONDS, 0.0)
        p95 = f"p95 {window.p95_ms:6,.0f} ms" if window.requests > window.errors else "no answers"
        left = self._left(stages, now)
        if name in (END, PAUSE, SILENCE) or left <= 0:
            ending = "last answers"
        else:
            ending = f"{left:.0f} s left" + " of this step" * (self._load.shape == STEPS)
        figures = f"{users:5} users {window.rps:8.1f}/s  {p95:<13}  {self._failed} failed"
        return f"{now - stages[0][2]:4.0f} s {figures}  {ending}"

    def overdue(self, now: float) -> float:
        """For how many seconds the last stage has been over; below 0 if it is not."""
        stages = self._stages()
        return -self._left(stages, now) if stages else 0.0

    def _left(self, stages: list[tuple[str, int, float]], now: float) -> float:
        """The seconds that are left, of the current step if the shape is a search."""
        began = stages[-1 if self._load.shape == STEPS else 0][2]
        return began + self._load.seconds - now

    def _stages(self) -> list[tuple[str, int, float]]:
        """The stages so far: name, users, start."""
        try:
            with (self._folder / "stages.csv").open(encoding="utf-8", newline="") as file:
                return [(row["name"], int(row["users"]), float(row["started"])) for row in csv.DictReader(file)]
        except (OSError, TypeError, ValueError):  # it is not there yet, or half written
            return []

    def _read(self, now: float) -> None:
        """Read what is new in requests.csv, and forget what is old."""
        with suppress(OSError), (self._folder / "requests.csv").open("rb") as file:
            file.seek(self._offset)
            new = file.read()
            whole = new[: new.rindex(b"\n") + 1] if b"\n" in new else b""
            self._offset += len(whole)
            rows = list(csv.reader(io.StringIO(whole.decode(), newline="")))
            if rows and not self._header:
                self._header = rows.pop(0)
            named = [dict(zip(self._header, row, strict=True)) for row in rows]
            self._failed += sum(1 for row in named if row["error"])
            self._recent += named
        oldest = now - RECENT_SECONDS
        self._recent = deque(row for row in self._recent if _done(row) >= oldest)


def _done(row: dict[str, str]) -> float:
    return float(row["due"]) + float(row["latency_ms"]) / 1000


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _conditions(plan: LoadPlan, target: Target, name: str) -> dict[str, Any]:
    """Everything that the figures depend on, for the report."""
    statistics = Statistics(target.urls[0], target.ca_file)
    try:
        server = {"what": target.what, "tritonserver": statistics.version(), "ensembles": statistics.ensembles()}
    except Unavailable:
        server = {"what": target.what, "tritonserver": "unknown", "ensembles": []}
    return {
        "name": name,
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **plan.load._asdict(),
        "timeout": plan.timeout,
        "workers": plan.workers + plan.remote_workers,
        "server": server,
        "slo": asdict(plan.slo),
        "demand": plan.demand and asdict(plan.demand),
        "machine": machine(),
        "versions": {**versions(PACKAGES), "tritonserver": server["tritonserver"]},
        "mix": plan.mix.read_text(encoding="utf-8"),
    }
