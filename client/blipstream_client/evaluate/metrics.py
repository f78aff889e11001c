# SPDX-License-Identifier: Apache-2.0
"""BLEU, ROUGE-L, CIDEr and SPICE by `pycocoevalcap`, and what captions are like without references.

Texts are tokenized, with a space between two tokens.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream_client.bulk.errors import translated
from blipstream_client.evaluate.java import java

ORDERS = 4  # of BLEU: up to 4-grams

Floats = npt.NDArray[np.float64]


def bleu_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Counts [N, 9], which add up: for 1- to 4-grams the right ones and all, and the closest reference's length."""
    scorer = import_module("pycocoevalcap.bleu.bleu_scorer")

    def of_one(caption: str, texts: Sequence[str]) -> list[int]:
        cooked = scorer.cook_test(caption, scorer.cook_refs(texts), "closest", ORDERS)
        return [*cooked["correct"], *cooked["guess"], cooked["reflen"]]

    return np.array([*map(of_one, captions, references)], np.float64).reshape(-1, 2 * ORDERS + 1)


def bleu(counts: Floats) -> Floats:
    """BLEU-1 to BLEU-4 [..., 4] from counts [..., 9], as BleuScorer computes them, with its tiny numbers."""
    right, found, length = counts[..., :ORDERS], counts[..., ORDERS:-1], counts[..., -1]
    ratio = (found[..., 0] + 1e-15) / (length + 1e-9)
    penalty = np.exp(np.minimum(1 - 1 / ratio, 0))  # of captions that are too short
    means = np.cumprod((right + 1e-15) / (found + 1e-9), -1) ** (1 / np.arange(1, ORDERS + 1))
    scores: Floats = means * penalty[..., None]
    return scores


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """ROUGE-L of each caption [N]."""
    scorer = import_module("pycocoevalcap.rouge.rouge").Rouge()
    return np.array([scorer.calc_score([each], texts) for each, texts in zip(captions, references, strict=True)])


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """CIDEr-D of each caption [N]. Words count by how few of these references have them."""
    module = import_module("pycocoevalcap.cider.cider_scorer")
    scorer = module.CiderScorer()
    scorer.ctest = _Cooked(module.cook_test, captions)
    scorer.crefs = _Cooked(module.cook_refs, references)
    scores: Floats = scorer.compute_score()[1]
    return scores


@dataclass
class _Cooked:
    """What CiderScorer reads several times, counted anew each time: all counts together would take gigabytes."""

    cook: Callable[[Any], Any]
    texts: Sequence[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Any]:
        return map(self.cook, self.texts)


def check_spice() -> None:
    """Download what SPICE needs into its package, unless it is there. Raises InvalidRequest if that fails."""
    with translated("SPICE needs Stanford CoreNLP, which cannot be downloaded here (leave out --spice)"):
        import_module("pycocoevalcap.spice.spice").Spice()


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """SPICE of each caption [N]. Raises InvalidRequest if Java fails."""
    scorer = import_module("pycocoevalcap.spice.spice").Spice()
    os.environ["PATH"] = os.pathsep.join([str(Path(java()).parent), os.environ.get("PATH", "")])
    said = {number: [each] for number, each in enumerate(captions)}
    with translated("SPICE failed (leave out --spice)"):
        _, scores = scorer.compute_score({number: [*texts] for number, texts in enumerate(references)}, said)
    return np.array([each["All"]["f"] for each in scores])


def lengths(captions: Sequence[str]) -> Floats:
    """The number of tokens of each caption [N]."""
    return np.array([len(each.split()) for each in captions], np.float64)


def repetition(captions: Sequence[str]) -> Floats:
    """The share of each caption's pairs of neighbouring tokens that occurred before in it [N]."""

    def of_one(caption: str) -> float:
        pairs = ngrams(caption, 2)
        return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0

    return np.array([*map(of_one, captions)])


def diversity(captions: Sequence[str]) -> dict[str, float]:
    """The share of captions that another image has, too, and of n-grams that are distinct (Li et al. 2016)."""
    counts = Counter(captions)
    shares = {"same": sum(count for count in counts.values() if count > 1) / len(captions)}
    for n in (1, 2):
        total = sum(len(ngrams(each, n)) for each in captions)
        shares[f"distinct-{n}"] = len({gram for each in captions for gram in ngrams(each, n)}) / (total or 1)
    return shares


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens."""
    tokens = text.split()
    return [*zip(*(tokens[start:] for start in range(n)), strict=False)]
