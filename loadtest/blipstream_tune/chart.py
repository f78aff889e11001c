# SPDX-License-Identifier: Apache-2.0
"""The chart of a tuning."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

from blipstream_tune.settings import Settings
from blipstream_tune.trials import Trial


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
