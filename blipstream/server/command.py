# SPDX-License-Identifier: Apache-2.0
"""`blipstream serve`: serve captions without a container. `python -m blipstream.server` is the same.

A supervisor watches the server and restarts it. http://HOST:8003 says how it is.

SIGTERM, SIGHUP or Ctrl-C drains the server: it gives requests in flight ten seconds, and then cuts off the clients that
are still connected (see TritonServer.stop). To change to another version without a failed request, start the new server
beside the old one on other ports, with both in the clients' list of endpoints, and then send the old one SIGTERM. A
server holds in memory what it serves, so a repository may be built again under it.
"""

import logging
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from blipstream import command_line, signals
from blipstream.defaults import from_operator, shown
from blipstream.errors import BlipstreamError, ServerError
from blipstream.finite import FiniteRange
from blipstream.server import checkpoint, open_files, proc
from blipstream.server.network import bypass_proxies, free_ports
from blipstream.server.served_repository import check_adapter
from blipstream.server.tls import TLS
from blipstream.server.triton import TritonServer

DEFAULT_CONFIG = "tensorrt"  # config.pbtxt itself, unless the build wrote another for its plan
ADMIN_KEY = "BLIPSTREAM_ADMIN_KEY"  # not an option: everybody who lists processes sees arguments

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class NameAndValue(click.ParamType[str]):
    """NAME=VALUE. An environment variable may hold several, with semicolons between: values may have spaces."""

    name = "NAME=VALUE"
    envvar_list_splitter = ";"


@dataclass(frozen=True)
class ServeOptions:
    """The options of the command, by their names. The options themselves say what each means, and its default."""

    checkpoint: str | None
    repository: str | None
    processor: str | None
    adapters: tuple[str, ...]
    config: str
    default: tuple[str, ...]
    fixed: tuple[str, ...]
    defaults_file: Path | None
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    health_port: int | None
    tls_certificate: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    admin_key_file: Path | None
    log_path: Path | None
    log_requests: bool
    show_log: bool
    traces: str | None
    trace_every: int
    timeout: float
    restart: bool
    verbose: int


@click.command(
    context_settings=command_line.SETTINGS,
    epilog=f"{command_line.BY_ENVIRONMENT.format('BLIPSTREAM_LOG_REQUESTS=1')} --no-restart is BLIPSTREAM_RESTART=0.",
)
@click.argument("checkpoint", required=False, envvar="BLIPSTREAM_CHECKPOINT")
@click.option(
    "--repository",
    help="Model repository to serve; a CHECKPOINT is built there first.  [default: a folder of ~/.cache/blipstream]",
)
@click.option(
    "--processor", help="Hub name or folder to take a CHECKPOINT's tokenizer and image processor from, if it lacks one."
)
@click.option(
    "--adapter",
    "adapters",
    type=NameAndValue(),
    metavar="NAME=FOLDER",
    multiple=True,
    help="An adapter of PEFT's to add to the CHECKPOINT, by the name that requests give. Repeatable.",
)
@click.option("--config", default="cpu", help="Runtime: a name in any model's configs/, or tensorrt.")
@click.option(
    "--default",
    type=NameAndValue(),
    multiple=True,
    help="For requests that leave this option out, as max_tokens=20. Repeatable; as an environment variable, with ';'.",
)
@click.option("--fixed", type=NameAndValue(), multiple=True, help="The same, and requests cannot send another value.")
@click.option("--defaults-file", type=FILE, help="Both, in the tables [default] and [fixed] of a TOML file.")
@click.option("--host", default=TritonServer.host, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--http-port", default=TritonServer.http_port, help="0 for any free port.")
@click.option("--grpc-port", default=TritonServer.grpc_port, help="0 for any free port.")
@click.option("--metrics-port", default=TritonServer.metrics_port, help="0 for any free port.")
@click.option(
    "--health-port", type=int, help="/livez, /readyz, /healthz, /metrics.  [default: the one above the metrics port]"
)
@click.option("--tls-certificate", type=FILE, help="PEM. gRPC then speaks TLS, and HTTP is for this machine alone.")
@click.option("--tls-key", type=FILE, help="PEM, unencrypted.  [default: in the same file]")
@click.option("--tls-client-ca", type=FILE, help="PEM. gRPC clients then need a certificate of this authority.")
@click.option(
    "--admin-key-file",
    type=FILE,
    help=f"The key to the administrative APIs, unless {ADMIN_KEY} has it. Without a key, nobody may use them.",
)
@click.option(
    "--log",
    "log_path",
    envvar="BLIPSTREAM_LOG",
    type=command_line.OutputFile(),
    help="Triton's log.  [default: a temporary file]",
)
@click.option("--log-requests", is_flag=True, help="Write a line of JSON to the log for each request.")
@click.option("--show-log", is_flag=True, help="Print Triton's log as well.")
@click.option("--traces", metavar="URL", help="OpenTelemetry collector, such as http://localhost:4318/v1/traces.")
@click.option(
    "--trace-every", type=click.IntRange(min=1), default=TritonServer.trace_every, help="Trace one request in so many."
)
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    default=TritonServer.ready_timeout,
    help="Seconds for the models to load.",
)
@click.option("--restart/--no-restart", default=True, help="Restart a server that fails, or exit and say what failed.")
@click.option("-v", "--verbose", count=True, help="More in Triton's log.")
def main(**options: Any) -> None:  # noqa: ANN401
    """Serve a checkpoint with tritonserver, until Ctrl-C or SIGTERM.

    CHECKPOINT is a hub name or a folder. It is built first, unless it is up to date. If it is absent, the repository is
    served as it is; if that is absent too, the demo checkpoint is.
    """
    try:
        serve(ServeOptions(**options))
    except (BlipstreamError, OSError) as error:
        command_line.fail(error)


def serve(settings: ServeOptions) -> None:
    """Serve until a signal stops it, and say so. Raises BlipstreamError or OSError if it cannot serve."""
    signals.exit_on_signals(0)
    # these take long to import, and are imported only here so that a stop signal meanwhile prints no traceback
    from blipstream.server.health import Health
    from blipstream.server.health_server import HealthServer
    from blipstream.server.supervisor import Supervisor
    from blipstream.server.welcome import welcome

    try:
        signals.interrupt_on_signals()
        open_files.raise_limit()
        proc.adopt_orphans()
        logging.basicConfig(format="%(asctime)s %(message)s")
        repository = command_line.repository_folder(settings.repository)
        server = TritonServer(
            repository=repository or Path(),  # if absent, the build says below which it is
            host=settings.host,
            http_port=settings.http_port,
            grpc_port=settings.grpc_port,
            metrics_port=settings.metrics_port,
            defaults=from_operator(settings.default, settings.fixed, settings.defaults_file, _places()),
            tls=tls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca),
            admin_key=read_admin_key(settings.admin_key_file),
            traces=settings.traces,
            trace_every=settings.trace_every,
            log_requests=settings.log_requests,
            log_path=settings.log_path,
            show_log=settings.show_log,
            ready_timeout=settings.timeout,
            verbose=settings.verbose,
        )
        health_port = settings.health_port
        if health_port is None:
            health_port = settings.metrics_port and settings.metrics_port + 1
        if repository is None or settings.checkpoint is not None:
            free_ports([*server.ports, (settings.host, "health", health_port)])  # rather now than after minutes
            server.repository = checkpoint.build(
                settings.checkpoint, settings.config, repository, settings.processor, settings.adapters
            )
        elif settings.adapters:
            raise ServerError(
                "--adapter is built with a CHECKPOINT: give that, too, or add it before by `blipstream adapter add`"
            )
        server.config = config_name(server.repository, settings.config)
        check_adapter(server.effective_defaults, server.repository)
        if defaults := shown(server.effective_defaults):
            click.echo(f"options: {defaults}")
        bypass_proxies(server.local_host)
        with HealthServer(Health(), settings.host, health_port) as health:
            supervisor = Supervisor(
                server, restarts=settings.restart, health=health.health, stopping=signals.stopping, say=click.echo
            )
            supervisor.run(lambda: click.echo(welcome(server, health.port)))
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be what went away
            click.echo(signals.GOODBYE)


def _places() -> tuple[str, str]:
    """Where the defaults of options were set, for messages."""
    context = click.get_current_context()
    default, fixed = (
        f"BLIPSTREAM_{name.upper()}"
        if context.get_parameter_source(name) is ParameterSource.ENVIRONMENT
        else f"--{name}"
        for name in ("default", "fixed")
    )
    return default, fixed


def config_name(repository: Path, config: str) -> str | None:
    """Triton's --model-config-name. Triton would take a wrong name for config.pbtxt, so it is checked here."""
    if not any(repository.glob("*/config.pbtxt")):
        found = "has no models" if repository.is_dir() else "is no folder" if repository.exists() else "does not exist"
        command = command_line.command("build", repository=repository)
        raise ServerError(f"{repository} {found}: give a model repository, or build it first by `{command}`")
    names = sorted({path.stem for path in repository.glob("*/configs/*.pbtxt")})
    if config in names:
        return config
    if config not in (DEFAULT_CONFIG, "default"):
        choices = ", ".join([*names, DEFAULT_CONFIG])
        raise ServerError(f"{repository} has no configuration {config!r}: choose one of {choices}")
    return None


def tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TLS | None:
    """What the options say of TLS, or None if they say nothing."""
    if certificate is not None:
        return TLS(certificate, key or certificate, client_ca)
    if key or client_ca:
        raise ServerError("--tls-key and --tls-client-ca go with a --tls-certificate: give that too")
    return None


def read_admin_key(file: Path | None) -> str:
    """The key in a file or in ADMIN_KEY, or else a random one that nobody knows."""
    given = os.environ.pop(ADMIN_KEY, "")  # so that the models' processes do not inherit it
    key = (file.read_text(encoding="utf-8", errors="replace") if file else given).strip()
    key = key or secrets.token_hex(32)
    if not re.fullmatch(r"[\w-]+", key, re.ASCII):  # Triton's option gives , : and = a meaning
        raise ServerError(
            f"the key in {file or ADMIN_KEY} must be letters, digits, - and _ alone: make one by `openssl rand -hex 32`"
        )
    return key
