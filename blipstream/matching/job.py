# SPDX-License-Identifier: Apache-2.0
"""One image with its texts, or texts alone: what is still to be read, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from blipstream.cuda_graphs import bucket
from blipstream.heatmaps import Explanation
from blipstream.matching.heads import Floats
from blipstream.options import ExplainOptions

SHORTEST = 8  # tokens, to which shorter texts are padded


class Row(NamedTuple):
    """One reading of a text."""

    text: int  # its place in the job
    looks: bool  # at the image, for the logit; else it is read alone, for its embedding
    length: int  # tokens


class Shape(NamedTuple):
    """What chunks must have in common to be read in one batch. Rows and tokens are powers of two.

    So few shapes occur. A new one costs OpenVINO as much as reading a few texts: 4 ms with the demo's three layers.
    """

    rows: int
    tokens: int
    image_tokens: int  # 0: there is no image
    explains: bool = False  # then they are read one by one


class Chunk(NamedTuple):
    """The rows of one job that are read at once."""

    job: "Job"
    rows: tuple[Row, ...]
    shape: Shape


@dataclass(eq=False)
class Job:
    """Texts to be compared with an image, or to be embedded if there is none.

    `texts` has token ids, [CLS] first; a text without any is not read, and matches nothing. `image_embeds` is [N, E].
    The results are complete once `is_done`.
    """

    texts: Sequence[Sequence[int]]
    image_embeds: npt.NDArray[Any] | None = None
    embeds_texts: bool = True  # beside an image, too
    explain: ExplainOptions | None = None  # how its one text is to be explained
    logits: Floats = field(init=False)  # [texts]; without an image, they stay 0
    embeddings: list[Floats] = field(init=False)  # [D] of each text
    explanation: Explanation | None = field(init=False, default=None)  # if it is to be explained
    tokens_left: int = field(init=False)  # to be read
    _rows: list[Row] = field(init=False)  # the same, the shortest last

    def __post_init__(self) -> None:
        self.logits = np.array([0 if ids else -np.inf for ids in self.texts], np.float32)
        self.embeddings = [np.zeros(0, np.float32)] * len(self.texts)
        kinds = [False] * self.embeds_texts + [True] * (self.image_embeds is not None)
        rows = [Row(number, looks, len(ids)) for number, ids in enumerate(self.texts) if ids for looks in kinds]
        self._rows = sorted(rows, key=lambda row: -row.length)
        self.tokens_left = sum(row.length for row in rows)

    @property
    def is_done(self) -> bool:
        """Whether all has been read, or is being read."""
        return not self._rows

    def first_chunk(self, max_tokens: int) -> Chunk:
        """The next rows, shortest first, as many as fit `max_tokens` with their padding; at least one."""
        count, tokens = 0, SHORTEST
        for row in reversed(self._rows):
            longer = max(tokens, bucket(row.length))
            if count and bucket(count + 1) * longer > max_tokens:
                break
            count, tokens = count + 1, longer
        image_tokens = 0 if self.image_embeds is None else len(self.image_embeds)
        shape = Shape(bucket(count), tokens, image_tokens, self.explain is not None)
        return Chunk(self, tuple(reversed(self._rows[-count:])), shape)

    def take(self, chunk: Chunk) -> None:
        """These rows, which were the next ones, need not be read again."""
        del self._rows[-len(chunk.rows) :]
        self.tokens_left -= sum(row.length for row in chunk.rows)
