# SPDX-License-Identifier: Apache-2.0
"""METEOR 1.5 for English (Denkowski and Lavie 2014): Java aligns the words, and the score follows from its counts.

The counts of several captions add up, and their scores do not. So the counts are kept.
"""

from collections.abc import Sequence

import numpy as np

from blipstream_client.evaluate.java import answers
from blipstream_client.evaluate.metrics import Floats

MODULE, JAR = "pycocoevalcap.meteor.meteor", "meteor-1.5.jar"
SEPARATOR = "|||"

# parameters for English
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # weights of exact words, stems, synonyms and paraphrases

# the counts: lengths of caption and reference, and how many of them are function words; for each stage, matched
# content words of both and matched function words of both; chunks; matched words of both
LENGTHS, FUNCTION_WORDS, MATCHES, CHUNKS, MATCHED = slice(0, 2), slice(2, 4), slice(4, 20), 20, slice(21, 23)


def meteor_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """METEOR's counts [N, 23] of each caption with the reference that suits it best. Both are tokenized.

    Raises BlipstreamError if Java fails.
    """
    program = ["-Xmx2G", "-jar", JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    lines = [_line([*texts, caption]) for caption, texts in zip(captions, references, strict=True)]
    counts = np.array([line.split() for line in answers("METEOR", MODULE, program, lines)], np.float64)
    # METEOR does not count the only chunk of a perfect match
    is_perfect = (counts[:, LENGTHS] == counts[:, MATCHED]).all(1) & (counts[:, CHUNKS] == 1)
    counts[is_perfect, CHUNKS] = 0
    return counts


def _line(texts: Sequence[str]) -> str:
    return f" {SEPARATOR} ".join(["SCORE", *(" ".join(text.replace(SEPARATOR, " ").split()) for text in texts)])


def meteor(counts: Floats) -> Floats:
    """The scores [...] from counts [..., 23], of one caption or the sum of several."""
    # matches of content words count DELTA, those of function words the rest
    matches = counts[..., MATCHES].reshape(*counts.shape[:-1], len(STAGES), 2, 2)
    matched = STAGES @ (DELTA * matches[..., 0, :] + (1 - DELTA) * matches[..., 1, :])
    function_words = counts[..., FUNCTION_WORDS]
    lengths = DELTA * (counts[..., LENGTHS] - function_words) + (1 - DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing matches: 0
        precision, recall = np.moveaxis(matched / lengths, -1, 0)
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = counts[..., CHUNKS] / counts[..., MATCHED].mean(-1)
        scores: Floats = np.nan_to_num(mean * (1 - GAMMA * fragmentation**BETA))
    return scores
