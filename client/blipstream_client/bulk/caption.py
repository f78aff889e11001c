# SPDX-License-Identifier: Apache-2.0
"""Captions of images: `blipstream bulk`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from blipstream_client._base import RERANK_MODEL
from blipstream_client._client import Client
from blipstream_client._exceptions import InvalidImage, ServerError
from blipstream_client._images import ImageLike
from blipstream_client._options import option_tensors
from blipstream_client._rerank_options import ALL_OPTIONS, RERANK_OPTIONS, RerankOptions
from blipstream_client.bulk.rows import FLOAT, INT, TEXT, Row
from blipstream_client.bulk.summary import Summary
from blipstream_client.bulk.task import PLAIN, Task
from blipstream_client.bulk.transport import OtherServed, Served

COLUMNS = {
    "name": TEXT,
    "caption": TEXT,
    "score": FLOAT,
    "match": FLOAT,  # of the caption and the image, if rerank or min_match asked for that
    "why_empty": TEXT,  # why matching left no caption: that is no error
    "options": TEXT,  # JSON: what was sent
    "defaults": TEXT,  # JSON: what the server's operator has set for options that are not sent
    "checkpoint": TEXT,
    "width": INT,  # pixels, as stored
    "height": INT,
    "hash": TEXT,  # SHA-256 of the image's bytes
    "error": TEXT,
}


@dataclass
class CaptionSummary(Summary):
    """The results so far, and how many images matching left without a caption."""

    needs: ClassVar = ("name", "why_empty", "error")

    empty: int = 0

    @property
    def outcome(self) -> str:
        """How many images have no caption, if any."""
        return f"{self.empty:,} without a caption that matches" if self.empty else ""

    def count(self, row: Row) -> None:
        """Count one row."""
        super().count(row)
        self.empty += row["why_empty"] is not None


class CaptionTask(Task[CaptionSummary]):
    """A caption for each image."""

    verb = "caption"
    result = "a caption"
    summary = CaptionSummary
    columns = COLUMNS

    def __init__(self, model: str, options: RerankOptions) -> None:
        option_tensors(options, ALL_OPTIONS)  # raises InvalidRequest for a bad value
        given = {name for name, value in options.items() if value is not None}
        self.models = (model if given.isdisjoint(RERANK_OPTIONS) else RERANK_MODEL,)
        self.options = self._options = options

    def check(self, client: Client, served: Served) -> None:  # noqa: ARG002
        """Caption a plain image, if there are options. Raises InvalidRequest."""
        if all(value is None for value in self.options.values()):
            return
        with suppress(InvalidImage, ServerError, OtherServed):  # the images meet them, and have their own answer
            self.ask(client, PLAIN, ())

    def ask(self, client: Client, image: ImageLike, texts: Sequence[str]) -> Sequence[Row]:  # noqa: ARG002
        """The caption and its scores, or why none is left."""
        caption = client.caption(image, **self._options)
        if caption.why_empty:
            return [{"why_empty": caption.why_empty}]
        return [{"caption": caption.text, "score": caption.score, "match": caption.match}]
