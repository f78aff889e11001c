# SPDX-License-Identifier: Apache-2.0
"""What differs between kinds of runs: what is asked about an image, and what its rows have."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from PIL import Image

from blipstream_client._client import Client
from blipstream_client._images import ImageLike
from blipstream_client.bulk.rows import Columns, Row
from blipstream_client.bulk.summary import Summary
from blipstream_client.bulk.transport import Served

SummaryT = TypeVar("SummaryT", bound=Summary)

PLAIN = Image.new("RGB", (64, 64))  # to ask about before there is any output


class Task(ABC, Generic[SummaryT]):
    """What is asked about an image, and what its rows have. Threads share it."""

    verb: str  # such as "caption"
    result: str  # of an image without an error, such as "a caption"
    models: Sequence[str]  # that it asks: their defaults are to stay as they are. The first gives the task its name
    is_matching = False  # whether the checkpoint in its rows is the retrieval checkpoint
    options: Mapping[str, Any]  # that decide the rows: one that is None is not sent
    summary: Callable[[], SummaryT]  # makes what counts the rows
    generation: Mapping[str, Any] = {}  # the options among them of captions that are generated
    columns: Columns  # of a row, in order. Those that `ask` does not give, the worker fills

    def adapter(self, defaults: Mapping[str, Any]) -> str | None:
        """The adapter whose captions are in the rows, given the server's defaults; "" if it may be any. None: none."""
        given = self.generation.get("adapter")
        return (defaults.get("adapter") if given is None else given) or None

    @abstractmethod
    def check(self, client: Client, served: Served) -> None:
        """Ask about a plain image. Raises InvalidRequest if the server refuses these options for any image."""

    @abstractmethod
    def ask(self, client: Client, image: ImageLike, texts: Sequence[str]) -> Sequence[Row]:
        """What the rows of an image and its texts have of their own. Raises InvalidRequest or ServerError."""

    def unanswered(self, texts: Sequence[str]) -> Sequence[Row]:  # noqa: ARG002
        """The same if there is no answer."""
        return [{}]
