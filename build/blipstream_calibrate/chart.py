# SPDX-License-Identifier: Apache-2.0
"""The picture of a calibration: whether a match is a probability, and what a threshold costs."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from blipstream_calibrate.figures import reliability
from blipstream_calibrate.fit import Floats, Labels, logistic

BEFORE, AFTER, PRECISION, RECALL = "#8a8a8a", "#0072b2", "#0072b2", "#d55e00"  # told apart by everyone
LARGEST = 120  # points, the area of a dot that stands for all pairs


def draw(before: Floats, after: Floats, labels: Labels, threshold: float, path: Path) -> None:
    """Write a PNG file, from logits [n] before and after they are calibrated."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    left.plot([0, 1], [0, 1], color="#d0d0d0", linewidth=1)
    for logits, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        bins = reliability(logits, labels)
        points = [each.match for each in bins], [each.matching for each in bins]
        left.plot(*points, color=color, linewidth=1.5, label=label)
        left.scatter(*points, s=[10 + LARGEST * each.pairs / len(labels) for each in bins], color=color)
    left.set(xlabel="match; a larger dot is more pairs", ylabel="share that belongs together")
    left.set_title("On the diagonal, a match is a probability", loc="left")

    match = logistic(after)
    order = np.argsort(match)
    found = labels[order][::-1].cumsum()[::-1]
    right.plot(match[order], found / np.arange(len(labels), 0, -1), color=PRECISION, label="precision")
    right.plot(match[order], found / labels.sum(), color=RECALL, label="recall")
    right.axvline(threshold, color="#404040", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    right.set(xlabel="threshold of the calibrated match")
    right.set_title("Precision and recall of what is accepted", loc="left")
    for axes in (left, right):
        _finish(axes)
    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def _finish(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
