# SPDX-License-Identifier: Apache-2.0
"""The load test: run Locust against a server, record the server meanwhile, and write a report for capacity planning.

python loadtest/load.py --shape steps --users 16 --p95-ms 500

Without --host, it starts a server of its own. The exit status is 0 if the SLO is met, 1 if it is missed, 2 if there is
no result, and 130 after Ctrl-C.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import cli
import load_report
import mix
from blipstream.errors import BlipstreamError
from blipstream.finite import FiniteRange
from blipstream.server.network import bypass_proxies
from blipstream.server.triton import TritonServer
from blipstream_bench.machine import machine, versions
from blipstream_bench.signals import stop_on_signals
from blipstream_client import BlipstreamError as ClientError
from blipstream_client import Client
from collector import Collector, Statistics, Unavailable, local_server
from load_results import RecordError, Slo
from shapes import DEFAULT_SECONDS, SHAPES

LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"
PROTOCOLS = {"grpc": ("grpc",), "http": ("http",), "both": ("grpc", "http")}
PACKAGES = ("locust", "blipstream", "blipstream-client", "tritonclient", "grpcio")
DRAIN_SECONDS = 60.0  # that Locust may take to end, beyond the timeout of a request


class LoadTestError(Exception):
    """There is no result; the text is one sentence."""


@dataclass(frozen=True)
class LoadPlan:
    """The load to run."""

    shape: str
    users: int
    seconds: float
    rate: float  # requests a second; 0: closed-loop users
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

    @property
    def host(self) -> str:
        """The URLs as Locust's --host takes them."""
        return ",".join(self.urls)


@contextmanager
def embedded(repository: Path, config: str, protocol: str) -> Iterator[Target]:
    """Start a server for the load test."""
    with TritonServer(repository, config=config, http_port=0, grpc_port=0, metrics_port=0) as server:
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        chosen = tuple(urls[each] for each in PROTOCOLS[protocol])
        what = f"an embedded server with configuration {config}"
        yield Target(chosen, what, server.pid)


def warm_up(target: Target, timeout: float, path: Path) -> None:
    """Send one request of each kind and size, so that no first request is measured and a refused mix is found out.

    Raises LoadTestError if one fails.
    """
    for url in target.urls:
        with Client(url, timeout=timeout) as client:
            for request in mix.load(path).one_of_each():
                try:
                    request.ask(client)
                except ClientError as exc:
                    raise LoadTestError(f"the first {request.kind!r} request of {path} failed: {exc}") from exc


def run(plan: LoadPlan, target: Target, folder: Path) -> None:
    """Run Locust and record the server meanwhile. Raises LoadTestError if Locust fails."""
    port = plan.master_port or _free_port()
    options = [
        *("--host", target.host, "--shape", plan.shape, "--users", str(plan.users)),
        *("--run-time", f"{plan.seconds:g}s", "--rate-per-user", f"{plan.rate / plan.users:g}"),
        *("--timeout", f"{plan.timeout:g}", "--stop-timeout", f"{plan.timeout:g}", "--mix", str(plan.mix.resolve())),
        *("--record", str(folder), "--csv", str(folder / "locust"), "--html", str(folder / "locust.html")),
        *("--headless", "--only-summary", "--exit-code-on-error", "0", "--loglevel", "WARNING"),
    ]
    waited = plan.workers + plan.remote_workers
    if waited:
        host = "*" if plan.remote_workers else "127.0.0.1"
        options += ["--master", "--expect-workers", str(waited), "--master-bind-port", str(port)]
        options += ["--master-bind-host", host]
    commands = [options, *[["--worker", "--master-port", str(port), "--loglevel", "WARNING"]] * plan.workers]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "locust.log").open("wb"))
        processes = [stack.enter_context(_locust(command, folder, log)) for command in commands]
        stack.enter_context(
            Collector(
                folder / "server.jsonl", Statistics(target.urls[0]), target.group, [each.pid for each in processes]
            )
        )
        status = _wait(processes[0], None if plan.remote_workers else plan.seconds + plan.timeout + DRAIN_SECONDS)
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


def _wait(process: subprocess.Popen[bytes], timeout: float | None) -> int:
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired as exc:
        raise LoadTestError(f"Locust did not end {DRAIN_SECONDS:g} s after the last request's timeout") from exc


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def conditions(plan: LoadPlan, target: Target, slo: Slo, name: str) -> dict[str, Any]:
    """Everything that the figures depend on, for the report."""
    statistics = Statistics(target.urls[0])
    try:
        server = {"what": target.what, "tritonserver": statistics.version(), "ensembles": statistics.ensembles()}
    except Unavailable:
        server = {"what": target.what, "tritonserver": "unknown", "ensembles": []}
    return {
        "name": name,
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "shape": plan.shape,
        "users": plan.users,
        "seconds": plan.seconds,
        "rate": plan.rate,
        "timeout": plan.timeout,
        "workers": plan.workers + plan.remote_workers,
        "server": server,
        "slo": asdict(slo),
        "machine": machine(),
        "versions": {**versions(PACKAGES), "tritonserver": server["tritonserver"]},
        "mix": plan.mix.read_text(encoding="utf-8"),
    }


@click.command(context_settings=cli.SETTINGS)
@click.option("--host", help="URLs of running servers, grpc:// or http://, with commas. Default: start a server.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="grpc", help="Protocol, without --host.")
@cli.repository("Model repository to serve, without --host.")
@click.option("--config", default="cpu", help="Configuration to serve, without --host.")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="steady", help="How the load changes over time.")
@click.option("--users", type=click.IntRange(min=1), default=8, help="The most users at once.")
@click.option("--duration", type=FiniteRange(min=1), help="Seconds. Default: depends on the shape.")
@click.option(
    "--rate", type=FiniteRange(min=0), default=0.0, help="Open loop: the most requests a second. 0: closed loop."
)
@click.option("--timeout", type=FiniteRange(min=0, min_open=True), default=30.0, help="Seconds for a request.")
@cli.MIX
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Locust processes beside the master.")
@click.option("--remote-workers", type=click.IntRange(min=0), default=0, help="Workers on other machines to wait for.")
@click.option("--master-port", type=click.IntRange(0, 65535), default=5557, help="Port for workers; 0: any free port.")
@click.option("--p95-ms", type=FiniteRange(min=0), help="SLO: 95 % of answers come within so many ms.")
@click.option("--error-rate", type=FiniteRange(0, 1), default=0.01, help="SLO: share of requests that may fail.")
@click.option("--min-rps", type=FiniteRange(min=0), help="SLO: answers a second, at least.")
@cli.NAME
@cli.OUTPUT
def main(
    host: str | None,
    protocol: str,
    repository: Path,
    config: str,
    shape: str,
    users: int,
    duration: float | None,
    rate: float,
    timeout: float,
    mix_path: Path,
    workers: int,
    remote_workers: int,
    master_port: int,
    p95_ms: float | None,
    error_rate: float,
    min_rps: float | None,
    name: str | None,
    output: Path,
) -> None:
    """Put a server under load and write a report for capacity planning."""
    bypass_proxies()
    if remote_workers and not master_port:
        raise click.UsageError("--remote-workers need a --master-port that they know, not 0")
    seconds = duration or DEFAULT_SECONDS[shape]
    plan = LoadPlan(shape, users, seconds, rate, timeout, mix_path, workers, remote_workers, master_port)
    slo = Slo(p95_ms, error_rate, min_rps)
    name = name or datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = (output / name).resolve()
    try:
        mix.load(mix_path)
        if not re.fullmatch(r"[\w.-]+", name):
            raise LoadTestError(f"a name has letters, digits, and the characters . _ and -, got {name!r}")
        with ExitStack() as stack:
            if host:
                urls = tuple(host.split(","))
                target = Target(urls, f"the server at {host}", local_server(urls[0]))
            else:
                click.echo("starting a server ...")
                target = stack.enter_context(embedded(repository, config, protocol))
            warm_up(target, timeout, mix_path)
            folder.mkdir(parents=True, exist_ok=True)
            described = conditions(plan, target, slo, name)
            (folder / "run.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            click.echo(f"{shape} load with up to {users} users for {seconds:g} s ...")
            run(plan, target, folder)
        test = load_report.write(folder)
    except (BlipstreamError, ClientError, LoadTestError, OSError, RecordError, mix.MixError) as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(2)
    for stage in (*test.stages, test.overall):
        click.echo(
            f"  {stage.name:12} {stage.requests:6} requests  {stage.errors:5} errors  {stage.rps:8.2f}/s  "
            f"p50 {stage.p50_ms:6.0f} ms  p95 {stage.p95_ms:6.0f} ms  p99 {stage.p99_ms:6.0f} ms"
        )
    click.echo(f"SLO {'met' if test.verdict.passed else 'missed'}: {test.verdict.text}")
    click.echo(f"report: {folder}/index.html")
    sys.exit(0 if test.verdict.passed else 1)


if __name__ == "__main__":
    stop_on_signals()
    main()
