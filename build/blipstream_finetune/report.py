# SPDX-License-Identifier: Apache-2.0
"""What a run leaves beside the weights: a model card, the metrics, and the learning curves."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

from blipstream_finetune.training import Progress, shown

METRICS, CURVES, CARD = "metrics.json", "curves.png", "README.md"
COLORS = ("#0072b2", "#d55e00")


def write_report(folder: Path, progress: Progress, about: dict[str, Any], base: str, language: str, data: str) -> None:
    """Write the three files. METRICS comes last: with it, the run is finished."""
    _draw(folder / CURVES, progress)
    (folder / CARD).write_text(_card(progress, about, base, language, data), encoding="utf-8")
    metrics = {"step": progress.best_step, **progress.best, "validations": progress.validations}
    (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def _draw(path: Path, progress: Progress) -> None:
    names = list(progress.best)
    figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 4), layout="constrained", squeeze=False)
    for place, name in zip(axes[0], names, strict=True):
        if name == "loss":
            place.plot(*zip(*progress.losses, strict=True), color=COLORS[0], label="training")
        values = [(step, metrics[name]) for step, metrics in progress.validations]
        place.plot(*zip(*values, strict=True), color=COLORS[1], marker="o", label="validation")
        place.axvline(progress.best_step, color="#d0d0d0", linewidth=1, label="kept")
        place.set(xlabel="step", title=name)
        place.spines[["top", "right"]].set_visible(False)
        place.legend(frameon=False)
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)


def _card(progress: Progress, about: dict[str, Any], base: str, language: str, data: str) -> str:
    header = {"base_model": base, "library_name": "transformers", "pipeline_tag": "image-to-text"}
    if language:
        header["language"] = language
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---"]
    lines += [f"# {base}, fine-tuned", "", "## Data", data, "", "## Settings", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in about.items()]
    lines += ["", "## Results", f"On held-out images, after step {progress.best_step}: {shown(progress.best)}.", ""]
    lines += ["![learning curves](curves.png)", "", "## Licence"]
    lines += [f"The licences of {base} and of the data hold for these weights, too. Name your own here.", ""]
    return "\n".join(lines)
