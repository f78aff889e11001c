# SPDX-License-Identifier: Apache-2.0
"""The measurements of the benchmark, and the tables and the chart that show them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import matplotlib as mpl
from rich.box import SIMPLE_HEAD
from rich.table import Table

mpl.use("agg")
from matplotlib import pyplot as plt

from blipstream_bench.plans import EXPLAIN, NEW_TOKENS, NUM_TEXTS, PICTURE_SIZE, STRATEGIES, TASKS, WORDS_OF_TEXT

TEXT_COLUMNS = ("strategy", "system", "dtype")  # of the Markdown table
REFERENCE = "transformers"  # the system that the others are compared with
COLOURS = {  # of the first dtype and of the second
    "transformers": ("#c4c4c4", "#8a8a8a"),
    "engine": ("#9ecae1", "#3182bd"),
    "blipstream-triton": ("#a1d99b", "#31a354"),
}


@dataclass(frozen=True)
class Measurement:
    """What was measured of one system in one number format with one strategy: a row of the table."""

    system: str
    device: str
    dtype: str
    strategy: str  # or another task
    batch: int  # images or texts at once when images_per_s was measured; for blipstream-triton, requests in flight
    images_per_s: float
    p50_ms: float  # one at a time
    p99_ms: float
    peak_mb: float


def unit(task: str) -> str:
    """What is counted: images with one caption each, or answers to other requests."""
    return "requests/s" if task in TASKS["matching"] else "images/s"


def ratio(row: Measurement, rows: list[Measurement], dtype: str) -> float | None:
    """The throughput as a multiple of that of transformers in that dtype, or None if there is none."""
    for other in rows:
        if (other.system, other.dtype, other.strategy) == (REFERENCE, dtype, row.strategy):
            return row.images_per_s / other.images_per_s
    return None


def cells(row: Measurement, rows: list[Measurement]) -> list[str]:
    """The cells of a row, in the order of `headings`."""
    ratios = [ratio(row, rows, dtype) for dtype in dtypes(rows)]
    return [
        row.strategy,
        row.system,
        row.dtype,
        str(row.batch),
        f"{row.images_per_s:.2f}",
        *("" if value is None else f"× {value:.2f}" for value in ratios),
        f"{row.p50_ms:.0f}",
        f"{row.p99_ms:.0f}",
        f"{row.peak_mb:.0f}",
    ]


def headings(rows: list[Measurement]) -> list[str]:
    """The names of the columns."""
    ratios = [f"transformers {dtype}" for dtype in dtypes(rows)]
    return ["strategy", "system", "dtype", "batch", unit(rows[0].strategy), *ratios, "p50 ms", "p99 ms", "peak MB"]


def dtypes(rows: list[Measurement]) -> list[str]:
    """The number formats that transformers ran in."""
    return list(dict.fromkeys(row.dtype for row in rows if row.system == REFERENCE))


def conditions(result: dict[str, Any]) -> str:
    """One sentence that says on what the figures were measured."""
    found, used = result["machine"], result["versions"]
    bf16 = "AMX" if found["amx"] else "AVX-512 bf16" if found["bf16"] else "no bf16"
    where = f"{found['cores']} cores of {found['processor']} ({bf16}), {found['memory_gb']:g} GB"
    software = ", ".join(f"{name} {used[name]}" for name in ("torch", "transformers", "openvino", "tritonserver"))
    width, height = PICTURE_SIZE
    matches = result["rows"][0]["strategy"] in TASKS["matching"]
    task = f"texts of {WORDS_OF_TEXT} words" if matches else f"{NEW_TOKENS} new tokens out"
    return f"{used['checkpoint']}, {width} x {height} JPEG in, {task}, on {found.get('gpu', where)}; {software}"


def terminal_table(result: dict[str, Any]) -> Table:
    """The table for a terminal of 80 columns, with a row of its own for each strategy."""
    rows = rows_of(result)
    ratios = [f"vs {dtype}" for dtype in dtypes(rows)]
    table = Table(
        title="Throughput, and latency of one at a time",
        caption=f"{', '.join(ratios)}: against transformers in that format. MB: the most memory. {conditions(result)}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for heading in ("batch", unit(rows[0].strategy), *ratios, "p50 ms", "p99 ms", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    strategy = ""
    for row in rows:
        if row.strategy != strategy:
            strategy = row.strategy
            table.add_row(strategy)
        _, system, dtype, *others = cells(row, rows)
        table.add_row(f"  {system.removeprefix('blipstream-')} {dtype}", *others)
    return table


def markdown(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = rows_of(result)
    names = headings(rows)
    ruler = ["---" if name in TEXT_COLUMNS else "---:" for name in names]
    lines = [names, ruler, *(cells(row, rows) for row in rows)]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", conditions(result) + "."])


def chart(result: dict[str, Any], path: Path) -> None:
    """Draw throughput as bars, by strategy and system."""
    rows = rows_of(result)
    tasks = list(dict.fromkeys(row.strategy for row in rows))
    kinds = list(dict.fromkeys((row.system, row.dtype) for row in rows))
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    width = 0.84 / len(kinds)
    for i, (system, dtype) in enumerate(kinds):
        mine = [row for row in rows if (row.system, row.dtype) == (system, dtype)]
        places = [tasks.index(row.strategy) + (i - (len(kinds) - 1) / 2) * width for row in mine]
        colour = COLOURS[system][dtypes(rows).index(dtype) % 2]
        bars = axes.bar(places, [row.images_per_s for row in mine], width * 0.94, color=colour)
        axes.bar_label(bars, [f"{row.images_per_s:.1f}" for row in mine], padding=2, fontsize=9)
        bars.set_label(f"{system} {dtype}")
    axes.set_xticks(range(len(tasks)), [label(task) for task in tasks])
    axes.set_ylabel(unit(tasks[0]))
    counted = "Requests" if tasks[0] in TASKS["matching"] else "Captions"
    axes.set_title(f"{counted} per second, more is better", loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    figure.legend(loc="outside upper center", ncols=len(kinds), frameon=False, columnspacing=1.2)
    figure.supxlabel(conditions(result), fontsize=8, color="#6e6e6e", wrap=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def label(task: str) -> str:
    """A task in words."""
    if task in NUM_TEXTS:
        return f"{NUM_TEXTS[task]} texts of an image" if NUM_TEXTS[task] > 1 else "1 text of an image"
    beams = STRATEGIES.get(task, 1)
    return f"{beams} beams" if beams > 1 else task.replace("_", " ")


def costs(rows: list[Measurement]) -> Iterator[str]:
    """For each system, how long an explanation takes, as a multiple of its caption."""
    captions = {(row.system, row.dtype): row for row in rows if row.strategy == "greedy"}
    for row in rows:
        if row.strategy == EXPLAIN:
            caption = captions[row.system, row.dtype]
            together, alone = caption.images_per_s / row.images_per_s, row.p50_ms / caption.p50_ms
            yield f"{row.system} {row.dtype}: explain takes {together:.2f} times as long as caption, alone {alone:.2f}"


def rows_of(result: dict[str, Any]) -> list[Measurement]:
    """The rows of a bench.json."""
    return [Measurement(**row) for row in result["rows"]]


def read(path: Path) -> dict[str, Any]:
    """Read a bench.json. Raises ClickException if it is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        markdown(result)
    except OSError as exc:
        raise click.ClickException(f"{path} cannot be read ({exc.strerror})") from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise click.ClickException(f"{path} is not what this benchmark writes: run it again") from exc
    return cast(dict[str, Any], result)
