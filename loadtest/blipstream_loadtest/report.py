# SPDX-License-Identifier: Apache-2.0
"""The report of a load test: index.html, a page that needs no network, summary.json for programs, and a text."""

import base64
import io
import json
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blipstream_loadtest.machines import Demand
from blipstream_loadtest.results import PERCENTILES, LoadTest, ModelFigures, Window

TEMPLATE = "report.html"
COLOURS = {"p50": "#9ecae1", "p95": "#3182bd", "p99": "#08306b", "queue": "#fdae6b", "compute": "#31a354"}
NEUTRAL = "#6e6e6e"
WRONG = "#c0392b"
WIDTH = 10.0  # inches
TEXT_WIDTH = 80  # columns
STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # keep text as text
    "svg.hashsalt": "blipstream",  # the same figures give the same file
}


def write(folder: Path, demand: Demand | None = None) -> LoadTest:
    """Read the results in a folder and write the report there, for another demand if there is one.

    The results themselves stay as they are. Raises RecordError or OSError.
    """
    test = LoadTest(folder, demand)
    text = json.dumps(test.summary(), indent=2, allow_nan=False) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(render(test), encoding="utf-8")
    return test


def render(test: LoadTest) -> str:
    """The page, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ms"] = lambda value: (
        "–" if math.isnan(value) else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
    )
    with mpl.rc_context(STYLE):
        charts = {
            "throughput": throughput_chart(test),
            "time": time_chart(test),
            "models": models_chart(test),
            "batches": batches_chart(test),
            "usage": usage_chart(test),
        }
    return environment.get_template(TEMPLATE).render(test=test, charts=charts, percentiles=PERCENTILES)


def text(test: LoadTest, folder: Path) -> str:
    """The report for a terminal of 80 columns; `folder` has the page."""
    rows = [f"{'stage':18}{'requests':>9}{'failed':>8}{'answers/s':>11}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}"]
    for stage in (*test.stages, test.overall) if len(test.stages) > 1 else test.stages:
        latencies = "".join(f"{_whole(value):>10}" for value in (stage.p50_ms, stage.p95_ms, stage.p99_ms))
        rows.append(f"{stage.name:18}{stage.requests:9}{stage.errors:8}{stage.rps:11.2f}{latencies}")
    verdict = f"{test.verdict.title}: {test.verdict.text}"
    sentences = [textwrap.fill(each, TEXT_WIDTH) for each in (verdict, *test.findings, *test.plan)]
    return "\n".join([*rows, *sentences, f"report: {folder}/index.html (open it in a browser)"])


def _whole(milliseconds: float) -> str:
    return "-" if math.isnan(milliseconds) else f"{milliseconds:.0f}"


def throughput_chart(test: LoadTest) -> str:
    """Latency percentiles against throughput: one point for each stage, and behind them the p95 of each slice."""
    figure, axes = _figure(3.6)
    axes.scatter(
        *_columns(test.windows, "rps", "p95_ms"), s=12, color=COLOURS["p95"], alpha=0.25, label="p95 of a slice"
    )
    for name in ("p50", "p95", "p99"):
        axes.plot(*_columns(test.searched or test.stages, "rps", f"{name}_ms"), "o-", color=COLOURS[name], label=name)
    for stage in test.stages:
        if not math.isnan(stage.p99_ms):
            axes.annotate(stage.name, (stage.rps, stage.p99_ms), (0, 6), textcoords="offset points", ha="center")
    _slo_line(axes, test.slo.p95_ms)
    axes.margins(y=0.15)
    axes.set(xlabel="requests answered a second", xlim=(0, None))
    _milliseconds(axes, test.stages)
    _legend(axes)
    return _data_url(figure)


def time_chart(test: LoadTest) -> str:
    """Throughput, users, latencies and errors over time."""
    figure, (rates, latencies) = plt.subplots(2, 1, figsize=(WIDTH, 5), sharex=True, layout="constrained")
    middles = [(window.start + window.end) / 2 for window in test.windows]
    rates.plot(middles, [window.rps for window in test.windows], color=COLOURS["compute"], label="answers a second")
    failed = [window.errors / (window.end - window.start) for window in test.windows]
    if any(failed):
        rates.plot(middles, failed, color=WRONG, label="errors a second")
    rates.set(ylabel="a second", ylim=(0, None))
    users = rates.twinx()
    users.grid(visible=False)
    edges = [*(stage.start for stage in test.stages), test.end]
    users.stairs(
        [stage.users for stage in test.stages], edges, color=NEUTRAL, linestyle=":", baseline=None, label="users"
    )
    users.set(ylabel="users (dotted)", ylim=(0, None))
    _legend(rates)
    for name in ("p50", "p95", "p99"):
        latencies.plot(*_columns(test.windows, "", f"{name}_ms", middles), ".-", color=COLOURS[name], label=name)
    _slo_line(latencies, test.slo.p95_ms)
    latencies.set(xlabel="seconds", xlim=(0, test.end))
    _milliseconds(latencies, test.windows)
    _legend(latencies)
    return _data_url(figure)


def models_chart(test: LoadTest) -> str | None:
    """Time in queue and in compute of each model, over time; None if there are no statistics."""
    names = [model.name for model in _busy_models(test)]
    if not names or len(test.models_over_time) < 2:
        return None
    figure, all_axes = plt.subplots(1, len(names), figsize=(WIDTH, 2.8), layout="constrained", squeeze=False)
    for name, axes in zip(names, all_axes[0], strict=True):
        found = [(seconds, models[name]) for seconds, models in test.models_over_time if models[name].requests]
        seconds = [second for second, _ in found]
        queue, compute = [each.queue_ms for _, each in found], [each.compute_ms for _, each in found]
        axes.stackplot(
            seconds, queue, compute, colors=(COLOURS["queue"], COLOURS["compute"]), labels=("queue", "compute")
        )
        axes.set(title=name, xlabel="seconds", xlim=(0, test.end), ylim=(0, None))
    all_axes[0][0].set_ylabel("ms a request")
    figure.legend(*all_axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _data_url(figure)


def batches_chart(test: LoadTest) -> str | None:
    """Executions by batch size, for each model; None if there are no statistics."""
    models = _busy_models(test)
    if not models:
        return None
    figure, all_axes = plt.subplots(1, len(models), figsize=(WIDTH, 2.6), layout="constrained", squeeze=False)
    for model, axes in zip(models, all_axes[0], strict=True):
        sizes = [str(size) for size in model.batches]
        axes.bar(sizes, list(model.batches.values()), color=COLOURS["p95"])
        axes.set(title=f"{model.name}, mean {model.mean_batch:.1f}", xlabel="batch size")
        if len(sizes) > 16:
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(12, integer=True))
    all_axes[0][0].set_ylabel("executions")
    return _data_url(figure)


def usage_chart(test: LoadTest) -> str:
    """Processor and memory of the load's own processes, and of the server if it is on this machine."""
    figure, (cores, memory) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    for who, label, colour in (("server", "server", COLOURS["p95"]), ("load", "Locust", NEUTRAL)):
        usage = test.usage(who)
        if usage:
            seconds, used, megabytes = zip(*usage, strict=True)
            cores.plot(seconds, used, color=colour, label=label)
            memory.plot(seconds, megabytes, color=colour, label=label)
    cores.plot(
        [line["time"] - test.origin for line in test.lines[1:]],
        [line["machine_cores"] for line in test.lines[1:]],
        color=COLOURS["queue"],
        linestyle=":",
        label="all of Locust's machine",
    )
    cores.set(title="processor", xlabel="seconds", ylabel="cores", ylim=(0, None))
    memory.set(title="memory", xlabel="seconds", ylabel="MB", ylim=(0, None))
    figure.legend(*cores.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return _data_url(figure)


def _busy_models(test: LoadTest) -> list[ModelFigures]:
    """The models that computed something, without ensembles."""
    ensembles = test.conditions["server"]["ensembles"]
    return [model for model in test.models if model.requests and model.name not in ensembles]


def _figure(height: float) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(WIDTH, height), layout="constrained")


def _columns(
    windows: Iterable[Window], x: str, y: str, xs: list[float] | None = None
) -> tuple[list[float], list[float]]:
    """Two attributes of windows, without the windows in which nothing succeeded."""
    chosen = list(windows)
    positions = xs if xs is not None else [getattr(window, x) for window in chosen]
    pairs = [(position, getattr(window, y)) for position, window in zip(positions, chosen, strict=True)]
    pairs = [pair for pair in pairs if np.isfinite(pair[1])]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _legend(axes: Axes) -> None:
    """Put the legend in one row above the chart, where no line hides it."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5)


def _milliseconds(axes: Axes, windows: list[Window]) -> None:
    """Make the axis of latencies logarithmic: on a linear one, an overload would flatten everything else."""
    axes.set_ylabel("ms")
    if all(math.isnan(window.p50_ms) for window in windows):  # nothing succeeded
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())


def _slo_line(axes: Axes, p95_ms: float | None) -> None:
    if p95_ms is not None:
        axes.axhline(p95_ms, color=WRONG, linestyle="--", linewidth=1, label="SLO for p95")


def _data_url(figure: Figure) -> str:
    """The chart as an image in the page. Each image is a document of its own, so that their ids never clash."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
