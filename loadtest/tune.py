# SPDX-License-Identifier: Apache-2.0
"""Search for the batching settings that answer the most requests a second within an SLO, on this machine.

python loadtest/tune.py --p95-ms 500 --budget 900

Each trial writes the settings as the configuration `tuned` of a copy of the model repository, serves it, and measures
it with more and more requests in flight. The search changes one setting at a time and keeps each gain. At the end, the
best settings and those from the start are measured in turns, and the best have to win again. The exit status is 1 if
no settings meet the SLO, and 2 if there is no result.
"""

import json
import math
import os
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

mpl.use("agg")
from matplotlib import pyplot as plt

import cli
import mix
from blipstream.errors import BlipstreamError
from blipstream.finite import FiniteRange
from blipstream.server.network import bypass_proxies
from blipstream.server.triton import TritonServer
from blipstream_bench.machine import machine, versions
from blipstream_bench.signals import stop_on_signals
from blipstream_client import BlipstreamError as ClientError
from blipstream_client import Client

VARIANT = "tuned"
SPACE: dict[str, list[int]] = {  # the values to try, with the most influential setting first
    "decoder.max_queue_delay_us": [0, 1000, 2000, 5000, 10000],
    "encoder.preferred_batch": [0, 4, 8, 16],  # 0: no preference
    "encoder.max_queue_delay_us": [0, 1000, 2000, 5000, 10000],
    "preprocess.instances": [1, 2, 4],
    "decoder.instances": [1, 2],
    "encoder.instances": [1, 2],
}
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64)
WARM_UP = 0.25  # of a measurement's time, added to it and not counted
MIN_GAIN = 1.03  # the score's smallest ratio that is no noise
CONFIRMATIONS = 3  # rounds at the end, in which the best settings and those from the start take turns
HOPELESS = 2.0  # multiple of the SLO's p95 that ends a trial: with more requests in flight, p95 only grows
TIMEOUT = 60.0  # seconds for a request

Settings = dict[str, int]


class TuneError(Exception):
    """There is no result; the text is one sentence."""


@dataclass(frozen=True)
class Point:
    """What was measured with so many requests in flight."""

    in_flight: int
    rps: float
    p95_ms: float  # of the answers; 0 if there are none
    errors: int


@dataclass(frozen=True)
class Trial:
    """What was measured of some settings."""

    settings: Settings
    points: list[Point] = field(default_factory=list)

    @property
    def whole(self) -> list[Point]:
        """The points at which every request was answered."""
        return [point for point in self.points if not point.errors]

    def best(self, p95_ms: float) -> Point | None:
        """The point with the most requests a second within the SLO, or None."""
        good = [point for point in self.whole if point.p95_ms <= p95_ms]
        return max(good, key=lambda point: point.rps, default=None)

    def score(self, p95_ms: float) -> float:
        """Requests a second within the SLO. If no point meets it, the lowest p95, with a minus sign."""
        best = self.best(p95_ms)
        return best.rps if best else -min((point.p95_ms for point in self.whole), default=math.inf)


def config_path(repository: Path, model: str, config: str) -> Path:
    """The file from which Triton reads a model's configuration."""
    variant = repository / model / "configs" / f"{config}.pbtxt"
    return variant if variant.exists() else repository / model / "config.pbtxt"


def read_config(repository: Path, model: str, config: str) -> Any:  # noqa: ANN401
    """Parse a model's configuration. Raises TuneError."""
    path = config_path(repository, model, config)
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as exc:
        raise TuneError(f"{path} is no configuration of a model: {' '.join(str(exc).split())}") from exc


def read_settings(repository: Path, config: str) -> Settings:
    """Read the settings from a configuration. Raises TuneError."""
    settings = {}
    for name in SPACE:
        model, _, setting = name.partition(".")
        found = read_config(repository, model, config)
        match setting:
            case "instances":
                settings[name] = sum(group.count for group in found.instance_group) or 1
            case "max_queue_delay_us":
                settings[name] = int(found.dynamic_batching.max_queue_delay_microseconds)
            case _:
                settings[name] = int(max(found.dynamic_batching.preferred_batch_size, default=0))
    return settings


def write_settings(repository: Path, config: str, settings: Settings) -> None:
    """Write configs/tuned.pbtxt for each model with a setting, or with a configs/`config`.pbtxt. Raises TuneError."""
    models = {name.partition(".")[0] for name in SPACE}
    models |= {path.parent.parent.name for path in repository.glob(f"*/configs/{config}.pbtxt")}
    for model in models:
        chosen = read_config(repository, model, config)
        for name, value in settings.items():
            owner, _, setting = name.partition(".")
            if owner == model:
                _set(chosen, setting, value)
        folder = repository / model / "configs"
        folder.mkdir(exist_ok=True)
        (folder / f"{VARIANT}.pbtxt").write_text(
            f"# from {config}, by loadtest/tune.py\n{text_format.MessageToString(chosen)}", encoding="utf-8"
        )


def _set(config: Any, setting: str, value: int) -> None:  # noqa: ANN401
    match setting:
        case "instances":
            del config.instance_group[1:]
            config.instance_group[0].count = value
        case "max_queue_delay_us":
            config.dynamic_batching.max_queue_delay_microseconds = value
        case _:
            config.dynamic_batching.preferred_batch_size[:] = [value] if value else []


def measure(url: str, chosen: mix.Mix, in_flight: int, seconds: float) -> Point:
    """Keep so many requests in flight for so many seconds, after a warm-up."""
    latencies: list[float] = []
    errors: list[ClientError] = []
    with Client(url, timeout=TIMEOUT) as client:
        began = time.perf_counter() + seconds * WARM_UP
        ends = began + seconds

        def ask(seed: int) -> None:
            rng = random.Random(seed)  # noqa: S311
            while (start := time.perf_counter()) < ends:
                request = chosen.draw(rng)
                try:
                    request.ask(client)
                except ClientError as exc:
                    errors.append(exc)
                    continue
                done = time.perf_counter()
                if began <= done:
                    latencies.append((done - start) * 1000)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # The time goes on until the last answer, and that answer counts; else slow ones would be left out
    elapsed = time.perf_counter() - began
    return Point(in_flight, len(latencies) / elapsed, float(np.percentile(latencies or [0], 95)), len(errors))


def run_trial(
    repository: Path, config: str, settings: Settings, chosen: mix.Mix, p95_ms: float, seconds: float, most: int
) -> Trial:
    """Serve the settings and measure them with more and more requests in flight, up to `most`."""
    write_settings(repository, config, settings)
    points: list[Point] = []
    with TritonServer(repository, config=VARIANT, http_port=0, grpc_port=0, metrics_port=0) as server:
        with Client(server.grpc_url, timeout=TIMEOUT) as client:
            for request in chosen.one_of_each():
                request.ask(client)
        for in_flight in (level for level in IN_FLIGHT if level <= most):
            points.append(measure(server.grpc_url, chosen, in_flight, seconds))
            if points[-1].p95_ms > HOPELESS * p95_ms:
                break
    return Trial(settings, points)


def is_gain(score: float, before: float) -> bool:
    """Whether a score is above another one by more than noise."""
    return score > before * (MIN_GAIN if before > 0 else 2 - MIN_GAIN)


def search(
    start: Settings, run: Callable[[Settings], Trial], score: Callable[[Trial], float], go_on: Callable[[], bool]
) -> list[Trial]:
    """Change one setting at a time and keep each gain, until a pass over all settings has none or time is up.

    The first trial is of the settings at the start. The best trial is the one with the highest score.
    """
    trials = [run(start)]
    best, best_score = trials[0], score(trials[0])
    improved = True
    while improved and go_on():
        improved = False
        for name, values in SPACE.items():
            for value in sorted(values, key=lambda value: abs(value - best.settings[name])):
                settings = {**best.settings, name: value}
                if any(trial.settings == settings for trial in trials):
                    continue
                if not go_on():
                    return trials
                trials.append(run(settings))
                gained = score(trials[-1])
                if is_gain(gained, best_score):
                    best, best_score, improved = trials[-1], gained, True
    return trials


def confirm(first: Settings, other: Settings, run: Callable[[Settings], Trial]) -> list[list[Trial]]:
    """Run trials of both settings in turns; return those of each."""
    pairs = [[run(first), run(other)] for _ in range(CONFIRMATIONS)]
    return [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]


def chart(trials: list[Trial], start: Settings, winner: Settings, p95_ms: float, path: Path) -> None:
    """Draw every point without errors, their Pareto frontier, and the lines of the first and the best settings."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    points = sorted((point.rps, point.p95_ms) for trial in trials for point in trial.whole)
    axes.scatter(
        [rps for rps, _ in points], [p95 for _, p95 in points], s=14, color="#c4c4c4", label="all settings tried"
    )
    frontier = [point for point in points if not any(rps >= point[0] and p95 < point[1] for rps, p95 in points)]
    axes.plot(*zip(*frontier, strict=True), color="#08306b", linewidth=1, label="frontier")
    for settings, colour, label in ((start, "#fdae6b", "before"), (winner, "#31a354", "tuned")):
        mine = next(trial for trial in reversed(trials) if trial.settings == settings)
        axes.plot([p.rps for p in mine.whole], [p.p95_ms for p in mine.whole], "o-", color=colour, label=label)
        for point in mine.whole:
            axes.annotate(
                str(point.in_flight), (point.rps, point.p95_ms), (3, 3), textcoords="offset points", fontsize=8
            )
    axes.axhline(p95_ms, color="#c0392b", linestyle="--", linewidth=1, label="SLO")
    axes.set(xlabel="requests answered a second", ylabel="p95 ms", xlim=(0, None), ylim=(0, None))
    axes.set_title("Latency against throughput; numbers are requests in flight", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command(context_settings=cli.SETTINGS)
@click.option("--p95-ms", type=FiniteRange(min=0, min_open=True), required=True, help="SLO to meet.")
@cli.repository("Model repository with artifacts. It is copied, not changed.")
@click.option("--config", default="cpu", help="Configuration to start from.")
@click.option("--budget", type=FiniteRange(min=0), default=900.0, help="Seconds for the search.")
@click.option("--seconds", type=FiniteRange(min=0.1), default=4.0, help="Length of a measurement.")
@click.option("--max-in-flight", type=click.IntRange(min=1), default=64, help="The most requests in flight.")
@cli.MIX
@cli.NAME
@cli.OUTPUT
def main(
    p95_ms: float,
    repository: Path,
    config: str,
    budget: float,
    seconds: float,
    max_in_flight: int,
    mix_path: Path,
    name: str | None,
    output: Path,
) -> None:
    """Search for the batching settings that answer the most requests a second within an SLO, on this machine."""
    bypass_proxies()
    folder = output.resolve() / (name or datetime.now().astimezone().strftime("tune-%Y%m%d-%H%M%S"))
    copy = folder / "repository"
    began = time.monotonic()
    try:
        chosen = mix.load(mix_path)
        if copy.exists():
            raise TuneError(f"{copy} exists already: choose another --name")
        shutil.copytree(repository, copy, copy_function=_link)
        start = read_settings(copy, config)

        def run(settings: Settings) -> Trial:
            trial = run_trial(copy, config, settings, chosen, p95_ms, seconds, max_in_flight)
            click.echo(f"{time.monotonic() - began:6.0f} s  {_trial_line(trial, p95_ms)}  {_changes(settings, start)}")
            return trial

        trials = search(start, run, lambda trial: trial.score(p95_ms), lambda: time.monotonic() - began < budget)
        winner = max(trials, key=lambda trial: trial.score(p95_ms)).settings
        if winner != start:
            click.echo("the best settings and those from the start, in turns:")
            before, after = confirm(start, winner, run)
            trials += [*before, *after]
            scores = [statistics.median(trial.score(p95_ms) for trial in each) for each in (after, before)]
            if not is_gain(*scores):
                click.echo("they did not win again, so the gain was noise: the settings stay as they were")
                winner = start
        write_settings(copy, config, winner)
    except (BlipstreamError, ClientError, OSError, TuneError, mix.MixError) as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(2)
    chart(trials, start, winner, p95_ms, folder / "tune.png")
    result = {
        "p95_ms": p95_ms,
        "before": start,
        "tuned": winner,
        "trials": [asdict(trial) for trial in trials],
        "machine": machine(),
        "versions": versions(("blipstream", "openvino", "torch")),
        "mix": mix_path.read_text(encoding="utf-8"),
    }
    (folder / "tune.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    click.echo(f"tuned: {_changes(winner, start)}")
    click.echo(f"serve it: {sys.executable} -m blipstream.server --repository {copy} --config {VARIANT}")
    click.echo(f"chart: {folder}/tune.png")
    sys.exit(0 if any(trial.best(p95_ms) for trial in trials if trial.settings == winner) else 1)


def _trial_line(trial: Trial, p95_ms: float) -> str:
    best = trial.best(p95_ms)
    if best:
        return f"{best.rps:8.2f}/s, {best.in_flight:2} in flight, p95 {best.p95_ms:6.0f} ms"
    if not trial.whole:
        return f"{'requests fail under any load':>38}"
    return f"{'misses the SLO: p95 at best':>28} {-trial.score(p95_ms):6.0f} ms"


def _changes(settings: Settings, start: Settings) -> str:
    changed = [f"{name} {start[name]} -> {value}" for name, value in settings.items() if value != start[name]]
    return ", ".join(changed) or "as before"


def _link(source: str, target: str) -> None:
    """Hard-link a file. Copy it if it is a configuration, which the trials write, or if links are impossible."""
    if not source.endswith(".pbtxt"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


if __name__ == "__main__":
    stop_on_signals()
    main()
