# SPDX-License-Identifier: Apache-2.0
"""How well matches tell pairs apart, and how far they can be taken for probabilities. n pairs everywhere."""

from typing import NamedTuple

import numpy as np

from blipstream_calibrate.fit import Floats, Labels, logistic

BINS = 10  # of the calibration error, and of the reliability curve


class Bin(NamedTuple):
    """The pairs whose match lies in one tenth of 0 to 1."""

    match: float  # its mean
    matching: float  # the share that belongs together
    pairs: int


class Figures(NamedTuple):
    """In the order in which they are printed."""

    log_loss: float
    calibration_error: float
    precision: float
    recall: float
    auc: float


def figures(logits: Floats, accepted: Labels, labels: Labels) -> Figures:
    """The figures of calibrated logits [n], of which some are accepted [n]."""
    right = (accepted & labels).sum()
    return Figures(
        float(np.logaddexp(0, np.where(labels, -logits, logits)).mean()),
        sum(abs(each.match - each.matching) * each.pairs for each in reliability(logits, labels)) / len(labels),
        float(right / max(1, accepted.sum())),
        float(right / labels.sum()),
        auc(logits, labels),
    )


def reliability(logits: Floats, labels: Labels) -> list[Bin]:
    """The bins that are not empty. Source: Naeini and others, 2015."""
    match = logistic(logits)
    places = np.minimum((match * BINS).astype(int), BINS - 1)
    bins = [places == number for number in range(BINS)]
    return [Bin(float(match[each].mean()), float(labels[each].mean()), int(each.sum())) for each in bins if each.any()]


def auc(logits: Floats, labels: Labels) -> float:
    """How often a pair that belongs together is above one that does not; a tie counts half."""
    others = np.sort(logits[~labels])
    below, up_to = (np.searchsorted(others, logits[labels], side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(others))
