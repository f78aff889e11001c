# SPDX-License-Identifier: Apache-2.0
"""Tune: search, confirm, and write the winner, its chart and tune.json."""

import json
import os
import shutil
import statistics
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from blipstream_bench.machine import machine, versions
from blipstream_loadtest import mix
from blipstream_loadtest.progress import Progress
from blipstream_tune.chart import chart
from blipstream_tune.search import confirm, is_gain, search
from blipstream_tune.settings import Settings, TuneError, changes, read_settings, write_settings
from blipstream_tune.trials import Trial, describe, run_trial


@dataclass(frozen=True)
class TunePlan:
    """What to search for, and how."""

    p95_ms: float  # the SLO
    config: str  # to start from
    budget: float  # seconds for the search
    seconds: float  # of a measurement
    max_in_flight: int
    mix: Path


def check_is_new(folder: Path) -> None:
    """Raise TuneError if a tuning has been in a folder."""
    if (folder / "repository").exists():
        raise TuneError(f"{folder / 'repository'} exists already: choose another --name")


def tune(plan: TunePlan, repository: Path, folder: Path, progress: Progress) -> bool:
    """Tune a copy of the repository in `folder`, and say how it goes. Returns whether the result meets the SLO.

    Raises TuneError, MixError, OSError, or the errors of the server and of the client.
    """
    began = time.monotonic()
    chosen = mix.load(plan.mix)
    copy = folder / "repository"
    check_is_new(folder)
    shutil.copytree(repository, copy, copy_function=_link)
    start = read_settings(copy, plan.config)

    def run(settings: Settings) -> Trial:
        with progress.waiting("starting a server") as say:
            trial = run_trial(copy, plan.config, settings, chosen, plan.p95_ms, plan.seconds, plan.max_in_flight, say)
        click.echo(f"{time.monotonic() - began:6.0f} s  {describe(trial, plan.p95_ms)}")
        click.echo(_indented(settings, start, 10))
        return trial

    def score(trial: Trial) -> float:
        return trial.score(plan.p95_ms)

    click.echo(f"searching for {plan.budget:g} s, with p95 of at most {plan.p95_ms:g} ms:")
    trials = search(start, run, score, lambda: time.monotonic() - began < plan.budget)
    winner = max(trials, key=score).settings
    if winner != start:
        click.echo("the best settings and those from the start, in turns:")
        before, after = confirm(start, winner, run)
        trials += [*before, *after]
        scores = [statistics.median(map(score, each)) for each in (after, before)]
        if not is_gain(*scores):
            click.echo("they did not win again, so the gain was noise: the settings stay")
            winner = start
    write_settings(copy, plan.config, winner)
    with progress.waiting("drawing the chart"):
        chart(trials, start, winner, plan.p95_ms, folder / "tune.png")
    result = {
        "p95_ms": plan.p95_ms,
        "before": start,
        "tuned": winner,
        "trials": [asdict(trial) for trial in trials],
        "machine": machine(),
        "versions": versions(("blipstream", "openvino", "torch")),
        "mix": plan.mix.read_text(encoding="utf-8"),
    }
    (folder / "tune.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    click.echo(f"tuned:{_indented(winner, start, 7)[6:]}")
    return any(trial.best(plan.p95_ms) for trial in trials if trial.settings == winner)


def _indented(settings: Settings, start: Settings, columns: int) -> str:
    """The changes from the start, a line each."""
    return "\n".join(f"{'':{columns}}{change}" for change in changes(settings, start) or ["as before"])


def _link(source: str, target: str) -> None:
    """Hard-link a file. Copy it if it is a configuration, which the trials write, or if links are impossible."""
    if not source.endswith(".pbtxt"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
