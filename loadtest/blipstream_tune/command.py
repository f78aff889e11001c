# SPDX-License-Identifier: Apache-2.0
"""`blipstream tune`: search for the batching settings that answer the most requests a second within an SLO.

Each trial writes the settings as the configuration `tuned` of a copy of the model repository, serves it, and measures
it with more and more requests in flight. The search changes one setting at a time and keeps each gain. At the end, the
best settings and those from the start are measured in turns, and the best have to win again.

What is slow to import, or not installed, is imported once the options have been read.
"""

import shlex
import sys
from datetime import datetime
from pathlib import Path

import click

from blipstream.errors import BlipstreamError
from blipstream.finite import FiniteRange
from blipstream.server.network import bypass_proxies
from blipstream_bench.signals import stop_on_signals
from blipstream_client import BlipstreamError as ClientError
from blipstream_loadtest import options
from blipstream_loadtest.progress import Progress


@click.command(context_settings=options.SETTINGS)
@options.CHECKPOINT
@click.option(
    "--p95-ms",
    type=FiniteRange(min=0, min_open=True),
    default=500.0,
    help="SLO to meet: 95 % of answers come within so many ms.",
)
@options.SERVED
@options.CONFIG
@click.option("--budget", type=FiniteRange(min=0), default=900.0, help="Seconds for the search.")
@click.option("--seconds", type=FiniteRange(min=0.1), default=4.0, help="Length of a measurement.")
@click.option("--max-in-flight", type=click.IntRange(min=1), default=64, help="The most requests in flight.")
@options.MIX
@options.name("tune")
@options.OUTPUT
def main(
    checkpoint: str | None,
    p95_ms: float,
    repository: Path | None,
    config: str,
    budget: float,
    seconds: float,
    max_in_flight: int,
    mix_path: Path,
    name: str | None,
    output: Path,
) -> None:
    """Search for the batching settings that answer the most requests a second within an SLO, on this machine.

    CHECKPOINT is a hub name or a folder. Without it, and without --repository, the demo checkpoint is tuned. The model
    repository is copied, not changed. Let nothing else run meanwhile.

    The exit status is 0 if the settings meet the SLO, 1 if none do, 2 if there is no result, and 130 after Ctrl-C.
    """
    progress = Progress()
    progress.show("preparing the search ...")
    with options.importing():
        from blipstream_loadtest import mix
        from blipstream_loadtest.serving import repository_to_serve
        from blipstream_tune import tune
        from blipstream_tune.settings import TuneError
    bypass_proxies()
    folder = output.resolve() / (name or datetime.now().astimezone().strftime("tune-%Y%m%d-%H%M%S"))
    try:
        mix.load(mix_path)
        tune.check_is_new(folder)
        progress.clear()
        served = repository_to_serve(checkpoint, config, repository)
        stop_on_signals()
        plan = tune.TunePlan(p95_ms, config, budget, seconds, max_in_flight, mix_path)
        met = tune.tune(plan, served, folder, progress)
    except (BlipstreamError, ClientError, OSError, TuneError, mix.MixError) as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(2)
    finally:
        progress.clear()
    click.echo(f"chart: {folder}/tune.png")
    click.echo(f"serve it: blipstream serve --repository {shlex.quote(str(folder / 'repository'))} --config tuned")
    sys.exit(0 if met else 1)
