# SPDX-License-Identifier: Apache-2.0
"""The scores of all images, and the figures of any of them together. They are kept as Parquet."""

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._text import excerpt
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.parquet import opened_parquet
from blipstream_client.bulk.rows import as_utf8
from blipstream_client.bulk.sinks import replace
from blipstream_client.evaluate.meteor import meteor, meteor_counts
from blipstream_client.evaluate.metrics import (
    Floats,
    bleu,
    bleu_counts,
    cider,
    lengths,
    repetition,
    rouge_l,
    spice,
)
from blipstream_client.evaluate.tokens import PTB, tokenized

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METEOR, ROUGE_L, CIDER, SPICE = "METEOR", "ROUGE-L", "CIDEr", "SPICE"
MATCH, LENGTH, REPETITION = "match", "length", "repetition"
METRICS = (*BLEU, METEOR, ROUGE_L, CIDER, SPICE, MATCH, LENGTH, REPETITION)  # also in which order they are shown
BLEU_COUNTS, METEOR_COUNTS = "bleu_counts", "meteor_counts"
TOKENIZATION = b"tokenization"  # in the metadata of the file
GROUP_ROWS = 10_000


@dataclass
class Scores:
    """What is known of N images. The counts are what BLEU and METEOR of several images are computed from."""

    images: Sequence[str]
    captions: Sequence[str]
    references: Sequence[Sequence[str]]  # none at all, or some for each image
    tokenization: str
    metrics: Mapping[str, Floats]  # [N] each, of METRICS
    counts: Mapping[str, Floats]  # BLEU_COUNTS [N, 9] and METEOR_COUNTS [N, 23], with references

    def figures(self, weights: Floats | None = None) -> dict[str, float]:
        """The metrics of all images together, each of which counts as often as its weight in [N] says."""
        times = np.ones(len(self.images)) if weights is None else weights
        found = {name: float(times @ values / times.sum()) for name, values in self.metrics.items()}
        if BLEU_COUNTS in self.counts:
            found |= zip(BLEU, bleu(times @ self.counts[BLEU_COUNTS]).tolist(), strict=True)
        if METEOR_COUNTS in self.counts:
            found[METEOR] = float(meteor(times @ self.counts[METEOR_COUNTS]))
        return found

    def save(self, path: Path) -> None:
        """Write a row for each image. Raises InvalidRequest if the file cannot be written."""
        arrow = pyarrow(f"Writing {path}")
        columns: dict[str, Any] = {"image": self.images, "caption": self.captions}
        columns["references"] = arrow.array([*map(list, self.references)], arrow.list_(arrow.string()))
        columns |= {**self.metrics} | {name: [*values] for name, values in self.counts.items()}
        table = arrow.table(columns, metadata={TOKENIZATION: self.tokenization})
        content = io.BytesIO()
        arrow.parquet.write_table(table, content, row_group_size=GROUP_ROWS)
        with translated(f"Cannot write {path}", OSError):
            replace(path, content.getvalue())


def score(
    images: Sequence[str],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenization: str,
    *,
    matches: Sequence[float | None] = (),
    with_spice: bool = False,
) -> tuple[Scores, list[str]]:
    """The scores of images, and the tokens of their captions. Without references, each image's are empty.

    METEOR and SPICE are for English. Raises BlipstreamError if Java fails.
    """
    tokens = tokenized([*captions, *(text for texts in references for text in texts)], tokenization)
    said, rest = tokens[: len(captions)], iter(tokens[len(captions) :])
    wanted = [[next(rest) for _ in texts] for texts in references]
    metrics: dict[str, Floats] = {}
    counts: dict[str, Floats] = {}
    if any(wanted):
        counts[BLEU_COUNTS] = bleu_counts(said, wanted)
        metrics |= zip(BLEU, bleu(counts[BLEU_COUNTS]).T, strict=True)
        if tokenization == PTB:
            counts[METEOR_COUNTS] = meteor_counts(said, wanted)
            metrics[METEOR] = meteor(counts[METEOR_COUNTS])
        metrics |= {ROUGE_L: rouge_l(said, wanted), CIDER: cider(said, wanted)}
        if with_spice:
            metrics[SPICE] = spice(said, wanted)
    if matches and None not in matches:
        metrics[MATCH] = np.array(matches, np.float64)
    metrics |= {LENGTH: lengths(said), REPETITION: repetition(said)}
    return Scores(images, captions, references, tokenization, metrics, counts), said


def check_replaceable(path: str) -> None:
    """Raise InvalidRequest if there is a file that `save` has not written."""
    if not Path(path).exists():
        return
    found: dict[bytes, bytes] = {}
    with suppress(InvalidRequest), opened_parquet(path) as file:
        found = file.schema_arrow.metadata or {}
    if TOKENIZATION not in found:
        raise InvalidRequest(f"{excerpt(as_utf8(path))} exists and is no table of scores: name another --output")


def load(path: str) -> Scores:
    """A table that `save` wrote. Raises InvalidRequest if it is none."""
    with opened_parquet(path) as file:
        table = file.read(use_threads=False)
    shown, names = excerpt(as_utf8(path)), table.column_names
    tokenization = (table.schema.metadata or {}).get(TOKENIZATION)
    if tokenization is None or not {"image", "caption", "references", LENGTH} <= set(names) or not table.num_rows:
        raise InvalidRequest(f"{shown} is no table of scores: name one that `blipstream evaluate` wrote")
    texts = {name: table.column(name).to_pylist() for name in ("image", "caption", "references")}
    numbers = {name: np.array(table.column(name).to_pylist()) for name in names if name not in texts}
    counts = {name: numbers.pop(name) for name in (BLEU_COUNTS, METEOR_COUNTS) if name in numbers}
    return Scores(texts["image"], texts["caption"], texts["references"], tokenization.decode(), numbers, counts)
