# SPDX-License-Identifier: Apache-2.0
"""Serve captions without a container: `python -m blipstream.server`.

The supervisor watches the server and restarts it. http://HOST:8003 says how it is.

SIGTERM, SIGHUP or Ctrl-C drains it: new requests are refused, so that clients ask elsewhere, and those in flight have
ten seconds (TritonServer.stop). To go over to another version without a failed request, start it beside the old one on
ports of its own, with both in the clients' list of endpoints, then send the old one SIGTERM. A server has what it
serves in memory, so that a repository may be built anew under it.
"""

import logging
import os
import re
import resource
import secrets
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import FrameType
from typing import NoReturn

import click

import blipstream_client
from blipstream.config import BUILD_HINT
from blipstream.errors import BlipstreamError, ServerError
from blipstream.server.health import Health, HealthServer
from blipstream.server.supervisor import Supervisor, picture
from blipstream.server.tls import TLS
from blipstream.server.triton import ROOT, TritonServer, adopt_orphans, bypass_proxies

DEFAULT_CONFIG = "tensorrt"  # config.pbtxt itself, unless the build wrote one for its plan
ADMIN_KEY = "BLIPSTREAM_ADMIN_KEY"  # no option: arguments are seen by whoever lists processes
SAMPLES = Path("build/demo/samples")

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

stopping = Event()


@click.command(
    context_settings={"show_default": True, "auto_envvar_prefix": "BLIPSTREAM"},
    epilog="Each option is an environment variable, too, such as BLIPSTREAM_LOG_REQUESTS.",
)
@click.option("--repository", type=click.Path(path_type=Path), default=ROOT / "model_repository", help="Models.")
@click.option("--config", default="cpu", help="Runtime: a name in any model's configs/, or tensorrt.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@click.option("--http-port", default=8000, help="0 for any free port.")
@click.option("--grpc-port", default=8001, help="0 for any free port.")
@click.option("--metrics-port", default=8002, help="0 for any free port.")
@click.option(
    "--health-port", type=int, help="/livez, /readyz, /healthz, /metrics.  [default: the one above the metrics port]"
)
@click.option("--tls-certificate", type=FILE, help="PEM: gRPC speaks TLS, and HTTP is for this machine alone.")
@click.option("--tls-key", type=FILE, help="PEM, unencrypted.  [default: in the same file]")
@click.option("--tls-client-ca", type=FILE, help="PEM: gRPC clients must have a certificate of this authority.")
@click.option(
    "--admin-key-file",
    type=FILE,
    help=f"The administrative APIs are for those who have the key in it, or in {ADMIN_KEY}. Without: for nobody.",
)
@click.option("--log", "log_path", type=click.Path(path_type=Path), help="Triton's log; temporary if not given.")
@click.option("--log-requests", is_flag=True, help="A line of JSON in it for each request.")
@click.option("--show-log", is_flag=True, help="Print Triton's log as well.")
@click.option("--traces", metavar="URL", help="OpenTelemetry collector for spans, as http://localhost:4318/v1/traces.")
@click.option("--trace-every", type=click.IntRange(min=1), default=1, help="Requests, of which one is traced.")
@click.option("--timeout", default=300.0, help="Seconds for the models to load.")
@click.option("--restart/--no-restart", default=True, help="Restart a server that fails, or exit with what was wrong.")
@click.option("-v", "--verbose", count=True, help="More in Triton's log.")
def main(
    repository: Path,
    config: str,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    health_port: int | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    admin_key_file: Path | None,
    log_path: Path | None,
    log_requests: bool,
    show_log: bool,
    traces: str | None,
    trace_every: int,
    timeout: float,
    restart: bool,
    verbose: int,
) -> None:
    """Start tritonserver with the models of a repository, and stop it with Ctrl-C or SIGTERM."""
    try:
        stop_on_signals()
        open_many_files()
        adopt_orphans()
        logging.basicConfig(format="%(asctime)s %(message)s")
        server = TritonServer(
            repository=repository,
            config=config_name(repository, config),
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            tls=tls(tls_certificate, tls_key, tls_client_ca),
            admin_key=read_admin_key(admin_key_file),
            traces=traces,
            trace_every=trace_every,
            log_requests=log_requests,
            log_path=log_path,
            show_log=show_log,
            ready_timeout=timeout,
            verbose=verbose,
        )
        bypass_proxies(server.reachable)
        if health_port is None:
            health_port = metrics_port and metrics_port + 1
        with HealthServer(Health(), host, health_port) as health:
            supervisor = Supervisor(server, check_serves, restart, health.health, stopping)
            supervisor.run(lambda: click.echo(welcome(server, health.port)))
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be what went away
            click.echo("stopped")
    except (BlipstreamError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP do what Ctrl-C does, and let none interrupt the stopping. `nohup` has SIGHUP ignored."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    stopping.set()
    raise KeyboardInterrupt


def open_many_files() -> None:
    """Take up the limit of open files that the system permits: each connection is one, and 1,024 are soon used up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def config_name(repository: Path, config: str) -> str | None:
    """Triton's --model-config-name; it would take a wrong one for config.pbtxt, so check it here."""
    if not any(repository.glob("*/config.pbtxt")):
        found = "has no models" if repository.is_dir() else "is no folder" if repository.exists() else "does not exist"
        command = shlex.join(["make", "build", f"REPOSITORY={repository}"])
        raise ServerError(f"{repository} {found}: give a model repository, or build it first by `{command}`")
    names = sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})
    if config in names:
        return config
    if config not in (DEFAULT_CONFIG, "default"):
        choices = ", ".join([*names, DEFAULT_CONFIG])
        raise ServerError(f"{repository} has no configuration {config!r}: choose one of {choices}")
    return None


def tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TLS | None:
    """What the options say of TLS, if anything."""
    if certificate is not None:
        return TLS(certificate, key or certificate, client_ca)
    if key or client_ca:
        raise ServerError("--tls-key and --tls-client-ca go with a --tls-certificate: give that too")
    return None


def read_admin_key(file: Path | None) -> str:
    """The key in a file or in ADMIN_KEY, or a random one that nobody knows."""
    given = os.environ.pop(ADMIN_KEY, "")  # no model's process has to know it
    key = (file.read_text(encoding="utf-8", errors="replace") if file else given).strip()
    key = key or secrets.token_hex(32)
    if not re.fullmatch(r"[\w-]+", key, re.ASCII):  # Triton's option has its own meaning for , : and =
        raise ServerError(
            f"the key in {file or ADMIN_KEY} must be letters, digits, - and _ alone: make one by `openssl rand -hex 32`"
        )
    return key


def check_serves(server: TritonServer) -> None:
    """Caption one image over gRPC: models may be ready and yet fail."""
    try:
        with blipstream_client.Client(server.own_url) as client:
            text = client.caption(picture()).text
    except blipstream_client.BlipstreamError as error:
        raise ServerError(f"the server is ready, but its first caption failed: {error}") from error
    if not text.strip():
        raise ServerError(f"the server is ready, but its first caption is empty: {BUILD_HINT}")


def welcome(server: TritonServer, health_port: int) -> str:
    """Where the server listens and how to send it a first image."""
    places = [server.http_url, f"{server.grpc_url}, metrics on {server.metrics_url}"]
    lines = [f"serving on {' and '.join(places)}, health on http://{server.reachable}:{health_port}/healthz"]
    sample = next(iter(sorted((ROOT / SAMPLES).glob("*.jpg"))), None)
    shown = SAMPLES / sample.name if sample else Path("photo.jpg")
    command = Path(sys.prefix, "bin", "blipstream")
    name = command.relative_to(ROOT) if command.is_relative_to(ROOT) else command
    lines += ["try it:", f"  {shlex.quote(str(name))} caption {shown} --url {server.own_url}"]
    if sample:
        lines.append(f"  {curl(server.http_url, shown, sample.stat().st_size)}")
    return "\n".join([*lines, "Ctrl-C stops it"])


def curl(url: str, image: Path, size: int) -> str:
    """A shell line that sends an image as it is: JSON, the image's length in 4 bytes, the image."""
    header = (
        '{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES",'
        f'"parameters":{{"binary_data_size":{4 + size}}}}}]}}'
    )
    length = "".join(f"\\{byte:03o}" for byte in size.to_bytes(4, "little"))
    return (
        f"(printf '{header}{length}'; cat {shlex.quote(str(image))}) | curl -s --data-binary @- "
        f"-H 'Content-Type: application/octet-stream' -H 'Inference-Header-Content-Length: {len(header)}' "
        f"{url}/v2/models/caption/infer"
    )
