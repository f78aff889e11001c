# SPDX-License-Identifier: Apache-2.0
"""Two runs on the same images: how much their figures differ, and how much of that chance can make.

By the paired bootstrap (Koehn 2004): images are drawn with replacement, the same for both runs, and the figures are
computed anew of those that were drawn. BLEU and METEOR follow from counts, as for a whole corpus; the others are means
of the images' own. CIDEr's weights of words stay those of all images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._text import quoted
from blipstream_client.evaluate.metrics import Floats
from blipstream_client.evaluate.scores import BLEU, CIDER, MATCH, METEOR, METRICS, ROUGE_L, SPICE, Scores

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 0
QUALITIES = (*BLEU, METEOR, ROUGE_L, CIDER, SPICE, MATCH)  # the higher, the better


class Difference(NamedTuple):
    """How a figure of the second run differs from that of the first."""

    metric: str
    first: float
    second: float
    low: float  # of second - first: 95 % of the resamples lie between
    high: float

    @property
    def difference(self) -> float:
        """How much higher the second is."""
        return self.second - self.first


def differences(first: Scores, second: Scores) -> tuple[list[Difference], int]:
    """The differences, and the number of images that both runs have.

    Raises InvalidRequest if there is none, or if they have other references or tokens.
    """
    a, b = _common(first, second)
    count = len(a.images)
    names = [name for name in METRICS if name in a.metrics and name in b.metrics]
    rng = np.random.default_rng(SEED)
    drawn = []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        figures = a.figures(weights), b.figures(weights)
        drawn.append([figures[1][name] - figures[0][name] for name in names])
    low, high = np.percentile(drawn, INTERVAL, axis=0)
    whole = a.figures(), b.figures()
    return [
        Difference(name, whole[0][name], whole[1][name], *each)
        for name, *each in zip(names, low.tolist(), high.tolist(), strict=True)
    ], count


def _common(first: Scores, second: Scores) -> tuple[Scores, Scores]:
    """The rows of both with the same images, in the same order."""
    if first.tokenization != second.tokenization:
        raise InvalidRequest(
            f"The first run counts {first.tokenization}, and the second {second.tokenization}:"
            " evaluate both with the same --language"
        )
    places = {image: place for place, image in enumerate(second.images)}
    rows = [(place, places[image]) for place, image in enumerate(first.images) if image in places]
    if not rows:
        raise InvalidRequest(
            f"The two runs have no image in common: the first is {quoted(first.images[0])},"
            f" and {quoted(second.images[0])}"
        )
    a, b = (_rows(scores, [*places]) for scores, places in zip((first, second), zip(*rows, strict=True), strict=True))
    for image, *references in zip(a.images, a.references, b.references, strict=True):
        if sorted(references[0]) != sorted(references[1]):
            raise InvalidRequest(f"The two runs have other references of {quoted(image)}: evaluate both with the same")
    return a, b


def _rows(scores: Scores, rows: Sequence[int]) -> Scores:
    def picked(values: Floats) -> Floats:
        return values[rows]

    return Scores(
        [scores.images[row] for row in rows],
        [scores.captions[row] for row in rows],
        [scores.references[row] for row in rows],
        scores.tokenization,
        {name: picked(values) for name, values in scores.metrics.items()},
        {name: picked(values) for name, values in scores.counts.items()},
    )


def verdict(found: Sequence[Difference]) -> str:
    """One sentence on which run is better: by the intervals without 0, each of its own metric."""
    judged = [each for each in found if each.metric in QUALITIES]
    better = ", ".join(each.metric for each in judged if each.low > 0)
    worse = ", ".join(each.metric for each in judged if each.high < 0)
    if better and worse:
        return f"The second run is better in {better}, and worse in {worse}."
    if better or worse:
        return f"The second run is {'better' if better else 'worse'} in {better or worse}."
    if all(each.first == each.second and each.low == each.high for each in found):
        return "Neither run is better: their figures are the same."
    return "Neither run is better: chance can make such differences."
