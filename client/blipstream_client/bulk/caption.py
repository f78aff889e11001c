# SPDX-License-Identifier: Apache-2.0
"""Captions of images: `blipstream bulk`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

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


ADAPTER = {"adapter": TEXT}  # a column, if captions may have one


@dataclass
class CaptionSummary(Summary):
    """The results so far, and how many images matching left without a caption."""

    needs: ClassVar[tuple[str, ...]] = ("name", "why_empty", "error")

    empty: int = 0

    @property
    def outcome(self) -> str:
        """How many images have no caption, if any."""
        return f"{self.empty:,} without a caption that matches" if self.empty else ""

    def count(self, row: Row) -> None:
        """Count one row."""
        super().count(row)
        self.empty += row["why_empty"] is not None


class AdapterSummary(CaptionSummary):
    """The same where each image says its adapter."""

    needs: ClassVar = (*CaptionSummary.needs, "adapter")
    text: ClassVar = "adapter"


class CaptionTask(Task[CaptionSummary]):
    """A caption for each image. With `adapters`, the texts of an image are the names of adapters, or empty for none."""

    verb = "caption"
    result = "a caption"

    def __init__(self, model: str, options: RerankOptions, *, adapters: bool = False) -> None:
        option_tensors(options, ALL_OPTIONS)  # raises InvalidRequest for a bad value
        given = {name for name, value in options.items() if value is not None}
        self.models = (model if given.isdisjoint(RERANK_OPTIONS) else RERANK_MODEL,)
        self.options = self.generation = self._options = options
        self._adapters = adapters
        self.columns = COLUMNS | ADAPTER if adapters or options.get("adapter") else COLUMNS
        self.summary = AdapterSummary if adapters else CaptionSummary

    def adapter(self, defaults: Mapping[str, Any]) -> str | None:
        """The adapter of all images, or any."""
        return "" if self._adapters else super().adapter(defaults)

    def check(self, client: Client, served: Served) -> None:  # noqa: ARG002
        """Caption a plain image, if there are options. Raises InvalidRequest."""
        if all(value is None for value in self.options.values()):
            return
        with suppress(InvalidImage, ServerError, OtherServed):  # the images meet them, and have their own answer
            self.ask(client, PLAIN, ())

    def ask(self, client: Client, image: ImageLike, texts: Sequence[str]) -> Sequence[Row]:
        """The caption and its scores, or why none is left; by each adapter that the image says."""
        return [{**row, **self._caption(client, image, row["adapter"])} for row in self.unanswered(texts)]

    def unanswered(self, texts: Sequence[str]) -> Sequence[Row]:
        """The adapters alone."""
        if not self._adapters:
            return [{"adapter": self._options.get("adapter")}]
        return [{"adapter": adapter} for adapter in texts or ("",)]

    def _caption(self, client: Client, image: ImageLike, adapter: str | None) -> Row:
        options: RerankOptions = {**self._options, "adapter": adapter}
        caption = client.caption(image, **options)
        if caption.why_empty:
            return {"why_empty": caption.why_empty}
        return {"caption": caption.text, "score": caption.score, "match": caption.match}
