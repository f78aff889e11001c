# SPDX-License-Identifier: Apache-2.0
"""The picture of a calibration: whether a match is a probability, and what a threshold costs."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blipstream_calibrate.figures import reliability
from blipstream_calibrate.fit import Fit, Floats, Labels, by_threshold, logistic

BEFORE, AFTER, PRECISION, RECALL = "#8a8a8a", "#0072b2", "#0072b2", "#d55e00"  # told apart by everyone
LARGEST = 600  # square points, the area of a dot that stands for all pairs


def draw(logits: Floats, held_out: Floats, labels: Labels, fit: Fit, path: Path) -> None:
    """Write a PNG file, from logits [n] as they are, and calibrated by fits that have not seen them."""
    figure = picture(logits, held_out, labels, fit)
    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def picture(logits: Floats, held_out: Floats, labels: Labels, fit: Fit) -> Figure:
    """What `draw` writes: on the left the reliability, on the right precision and recall by the fit to all pairs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    left.plot([0, 1], [0, 1], color="#d0d0d0", linewidth=1)
    for each, color, label in ((logits, BEFORE, "before"), (held_out, AFTER, "after")):
        match, matching, pairs = np.array(reliability(each, labels)).T
        areas = 5 + LARGEST * pairs / len(labels)
        left.scatter(match, matching, s=areas, color=color, alpha=0.7, clip_on=False, label=label)
    left.set(xlabel="match; a larger dot is more pairs", ylabel="share that belongs together")
    left.set_title("On the diagonal, a match is a probability", loc="left")

    thresholds, accepted, found = by_threshold(logistic(logits / fit.temperature), labels)
    for share, color, label in ((found / accepted, PRECISION, "precision"), (found / labels.sum(), RECALL, "recall")):
        right.step([0, *thresholds], [share[0], *share], where="pre", color=color, label=label)
    right.axvline(fit.threshold, color="#404040", linestyle="--", linewidth=1, label=f"threshold {fit.threshold:.2f}")
    right.set(xlabel="threshold of the calibrated match; fitted to all pairs, unlike the table")
    right.set_title("Precision and recall of what is accepted", loc="left")
    for axes in (left, right):
        _finish(axes)
    return figure


def _finish(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
