# SPDX-License-Identifier: Apache-2.0
"""The temperature and the threshold that suit labelled pairs best. n pairs everywhere.

Source of the temperature: Guo and others, On Calibration of Modern Neural Networks, 2017.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

COOLEST, HOTTEST = 0.05, 20.0  # the temperatures that are allowed
FOLDS = 5
SEED = 0  # of the folds

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


class Fit(NamedTuple):
    """What is fitted."""

    temperature: float
    threshold: float


class HeldOut(NamedTuple):
    """Pairs as they are judged by a fit that has not seen them."""

    logits: Floats  # [n], divided by the temperature
    accepted: Labels  # [n], whether the match reaches the threshold


def fit(logits: Floats, labels: Labels) -> Fit:
    """The temperature of most likelihood, and the threshold of most F1 on the match that it gives."""
    temperature = fit_temperature(logits, labels)
    return Fit(temperature, fit_threshold(logistic(logits / temperature), labels))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature of most likelihood, between COOLEST and HOTTEST.

    Pairs that are all told apart would have the temperature 0, which says that no error is possible. So its logarithm
    has a prior, a normal distribution around 0 of deviation 1. It weighs as little as a single pair does.
    """
    signed = np.where(labels, logits, -logits)
    low, high = np.log(COOLEST), np.log(HOTTEST)
    for _ in range(40):  # halve the interval at whose ends the slope has different signs
        middle = (low + high) / 2
        scaled = signed * np.exp(-middle)
        if middle + np.sum(scaled * logistic(-scaled)) < 0:  # the slope of prior and loss
            low = middle
        else:
            high = middle
    return float(np.exp(middle))


def fit_threshold(match: Floats, labels: Labels) -> float:
    """The threshold of most F1, if pairs are accepted from it on: half-way between two matches, or 0 to accept all."""
    values, accepted, right = by_threshold(match, labels)
    best = int(np.argmax(2 * right / (accepted + labels.sum())))
    return float((values[best - 1] + values[best]) / 2) if best else 0.0


def by_threshold(match: Floats, labels: Labels) -> tuple[Floats, Floats, Floats]:
    """The matches [m] in rising order, each once. With each as the threshold: how many are accepted, and rightly so."""
    values, places = np.unique(match, return_inverse=True)
    accepted, right = (np.bincount(places, each)[::-1].cumsum()[::-1] for each in (np.ones(len(labels)), labels))
    return values, accepted, right


def cross_validated(logits: Floats, labels: Labels, same: Sequence[int]) -> HeldOut:
    """Every pair, by the fit to the other folds. Pairs with the same number in `same` [n] are in one fold."""
    _, first, places = np.unique(same, return_index=True, return_inverse=True)
    folds, order = np.zeros(len(first), np.int64), np.random.default_rng(SEED).permutation(len(first))
    for label in (False, True):
        of_label = order[labels[first[order]] == label]
        folds[of_label] = np.arange(len(of_label)) % FOLDS
    folds = folds[places]
    scaled, accepted = np.zeros(len(labels)), np.zeros(len(labels), np.bool_)
    for fold in range(FOLDS):
        out = folds == fold
        found = fit(logits[~out], labels[~out])
        scaled[out] = logits[out] / found.temperature
        accepted[out] = logistic(scaled[out]) >= found.threshold
    return HeldOut(scaled, accepted)


def logistic(logits: Floats) -> Floats:
    """The probability of a log-odds, without overflow."""
    result: Floats = np.exp(-np.logaddexp(0, -logits))
    return result
