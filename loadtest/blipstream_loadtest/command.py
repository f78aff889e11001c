# SPDX-License-Identifier: Apache-2.0
"""`blipstream loadtest`: put a server under load with Locust, and say how many machines a demand takes.

What is slow to import, or not installed, is imported once the options have been read.
"""

import importlib.util
import os
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import click
from click.core import ParameterSource

from blipstream.errors import BlipstreamError
from blipstream.extras import missing
from blipstream.finite import FiniteRange
from blipstream.server.network import bypass_proxies
from blipstream_bench.signals import stop_on_signals
from blipstream_client import BlipstreamError as ClientError
from blipstream_loadtest import options
from blipstream_loadtest.machines import PEAK_FACTOR, Demand, number
from blipstream_loadtest.progress import Progress
from blipstream_loadtest.shapes import DEFAULT_SECONDS, DEFAULT_USERS, STEPS, Load

STEADY = "steady"


@click.command(context_settings=options.SETTINGS)
@options.CHECKPOINT
@click.option(
    "--images-per-day",
    type=number,
    metavar="NUMBER",
    help="Say how many machines that takes: 5000000, 5e6 and 5M are the same. Unless told otherwise, search the limit.",
)
@click.option(
    "--peak-factor",
    type=FiniteRange(min=1),
    default=PEAK_FACTOR,
    help="The busiest moment of such a day, as a multiple of its average.",
)
@click.option("--host", help="URLs of running servers, grpc:// or http://, with commas.  [default: start a server]")
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    show_default="the well-known ones",
    help="Certificates to trust, of a --host with grpcs:// or https://.",
)
@click.option(
    "--protocol", type=click.Choice(["grpc", "http", "both"]), default="grpc", help="Protocol, without --host."
)
@options.SERVED
@options.CONFIG
@click.option(
    "--shape",
    type=click.Choice(list(DEFAULT_SECONDS)),
    show_default=f"{STEADY}; with --images-per-day, {STEPS}",
    help=f"How the load changes over time. {STEPS} searches for the most load that keeps to the SLO.",
)
@click.option(
    "--users",
    type=click.IntRange(min=1),
    show_default=f"{DEFAULT_USERS}; for {STEPS}, as many as it takes",
    help="The most users at once.",
)
@click.option(
    "--duration",
    type=FiniteRange(min=1),
    show_default=", ".join(f"{shape} {seconds:g}" for shape, seconds in DEFAULT_SECONDS.items()),
    help=f"Seconds; of {STEPS}, each step's.",
)
@click.option(
    "--rate",
    type=FiniteRange(min=0),
    default=0.0,
    help="The most requests a second, sent at random times (open loop). 0: each user waits for its answers.",
)
@click.option("--timeout", type=FiniteRange(min=0, min_open=True), default=30.0, help="Seconds for a request.")
@options.MIX
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Locust processes beside the master.")
@click.option("--remote-workers", type=click.IntRange(min=0), default=0, help="Workers on other machines to wait for.")
@click.option("--master-port", type=click.IntRange(0, 65535), default=5557, help="Port for workers; 0: any free port.")
@click.option(
    "--p95-ms",
    type=FiniteRange(min=0),
    show_default="no bound",
    help="SLO: 95 % of answers come within so many ms.",
)
@click.option("--error-rate", type=FiniteRange(0, 1), default=0.01, help="SLO: share of requests that may fail.")
@click.option("--min-rps", type=FiniteRange(min=0), show_default="no bound", help="SLO: answers a second, at least.")
@click.option(
    "--work-for",
    metavar="HOST",
    help="Only be one of the --remote-workers of a load test on this machine, at its --master-port.",
)
@options.name("loadtest")
@options.OUTPUT
@click.option(
    "--report",
    "again",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Load nothing; write the report in this folder again, for other --images-per-day if you like.",
)
def main(
    checkpoint: str | None,
    images_per_day: float | None,
    peak_factor: float,
    host: str | None,
    ca_file: Path | None,
    protocol: str,
    repository: Path | None,
    config: str,
    shape: str | None,
    users: int | None,
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
    work_for: str | None,
    name: str | None,
    output: Path,
    again: Path | None,
) -> None:
    """Put a server under load, and write a report for capacity planning.

    CHECKPOINT is a hub name or a folder. Without it, --repository and --host, the demo checkpoint is served.

    The exit status is 0 if the SLO is met, 1 if it is missed, 2 if there is no result, and 130 after Ctrl-C.
    """
    if importlib.util.find_spec("locust") is None:
        raise click.ClickException(missing("locust", "loadtest"))
    if ca_file and not host:
        raise click.UsageError("--ca-file is for a --host with grpcs:// or https://")
    if again and (others := _others_than("again", "images_per_day", "peak_factor")):
        raise click.UsageError(
            "--report takes only --images-per-day and --peak-factor, since the load test was run for the rest: "
            f"leave out {', '.join(others)}"
        )
    if checkpoint and host:
        raise click.UsageError(f"--host is a server that has its models: leave out {checkpoint}, or --host")
    if remote_workers and not master_port:
        raise click.UsageError("--remote-workers need a --master-port that they know, not 0")
    if work_for:
        worker = ["--worker", "--master-host", work_for, "--master-port", str(master_port)]
        os.execv(sys.executable, [sys.executable, "-m", "locust", "--locustfile", str(options.LOCUSTFILE), *worker])  # noqa: S606
    demand = Demand(images_per_day, peak_factor) if images_per_day else None
    shape = shape or (STEPS if demand else STEADY)
    load = Load(shape, users, duration or DEFAULT_SECONDS[shape], rate)
    progress = Progress()
    progress.show("preparing the load test ...")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the client does, before tritonclient imports gRPC here
    with options.importing():
        from blipstream_loadtest import mix, report, run
        from blipstream_loadtest.results import RecordError, Slo
        from blipstream_loadtest.serving import repository_to_serve
    bypass_proxies()
    try:
        if again:
            test, folder = report.write(again, demand), again.resolve()
            progress.clear()
            click.echo(report.text(test, folder))
            sys.exit(0 if test.verdict.passed else 2 if test.stopped else 1)
        slo = Slo(p95_ms, error_rate, min_rps)
        plan = run.LoadPlan(load, slo, demand, timeout, mix_path, workers, remote_workers, master_port)
        target = run.running(host, ca_file) if host else None
        mix.load(mix_path)
        folder = run.new_folder(output, name or datetime.now().astimezone().strftime("loadtest-%Y%m%d-%H%M%S"))
        with ExitStack() as stack:
            if target:
                stop_on_signals()
            else:
                progress.clear()
                served = repository_to_serve(checkpoint, config, repository)
                stop_on_signals()
                with progress.waiting("starting a server"):
                    target = stack.enter_context(run.embedded(served, config, protocol))
            test = run.load_test(plan, target, folder, progress)
    except (BlipstreamError, ClientError, OSError, RecordError, mix.MixError, run.LoadTestError) as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(2)
    finally:
        progress.clear()
    click.echo(report.text(test, folder))
    sys.exit(2 if test.stopped else 0 if test.verdict.passed else 1)


def _others_than(*names: str) -> list[str]:
    """What the command line has beside the parameters of these names."""
    context = click.get_current_context()
    return [
        each.opts[0]
        for each in context.command.params
        if each.name not in names and context.get_parameter_source(each.name or "") is ParameterSource.COMMANDLINE
    ]
