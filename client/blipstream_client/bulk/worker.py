# SPDX-License-Identifier: Apache-2.0
"""A client that makes output rows of images, as its task says, and holds the server to what it served at first."""

import hashlib
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from blipstream_client._base import DEFAULT_TIMEOUT, DEFAULT_URL, LOOK_SECONDS, MODELS
from blipstream_client._client import Client
from blipstream_client._errors import model_missing
from blipstream_client._exceptions import InvalidImage, InvalidRequest, ModelNotReady, ServerError
from blipstream_client._images import opened
from blipstream_client._notices import Waiting
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.rows import Row, as_utf8
from blipstream_client.bulk.task import Task
from blipstream_client.bulk.transport import Served, WatchedTransport


class Finished(NamedTuple):
    """The rows of an image, and the endpoints that their answers come from."""

    rows: Sequence[Row]
    endpoints: AbstractSet[int]


class Worker(Client):
    """Makes rows. An error of the server, unlike one of the image, ends the run."""

    def __init__(self, limit: Limit, task: Task[Any], url: str = DEFAULT_URL, **arguments: Any) -> None:  # noqa: ANN401
        self._limit = limit
        self._task = task
        self._waiting = Waiting(url, arguments.get("timeout", DEFAULT_TIMEOUT))
        super().__init__(url, **arguments)
        with self._waiting:
            self._waiting.begin()
            self.served = self._begin()
        self._of_all = {
            "options": json.dumps({name: value for name, value in task.options.items() if value is not None}),
            "defaults": None if self.served.defaults is None else json.dumps(self.served.defaults),
            "checkpoint": (task.is_matching and self.served.matching) or self.served.checkpoint,
        }

    def _open(self) -> None:
        arguments = self._addresses, self._settings, self._policy, self._limit, self._waiting
        self._transport: WatchedTransport = WatchedTransport(*arguments)

    def _begin(self) -> Served:
        try:
            return self._transport.begin(self._task.models, self._task.adapter, self._deadline(None))
        except ModelNotReady as exc:
            if exc.transient:
                raise
            there = [name for name in MODELS if self._transport.is_ready(name, self._deadline(LOOK_SECONDS))]
            missing = next((name for name in self._task.models if name not in there), self._task.models[0])
            raise model_missing(exc, missing, there) from exc

    def close(self) -> None:
        """Hang up. Requests of other threads end with RequestCancelled."""
        with self._waiting:
            super().close()

    def check_options(self) -> None:
        """Ask about a plain image. Raises InvalidRequest if the server refuses the options for any image."""
        self._task.check(self, self.served)

    def confirm(self, endpoints: AbstractSet[int]) -> None:
        """Check that these endpoints still serve the same, with an image's timeout. Raises BlipstreamError."""
        for endpoint in endpoints:
            self._transport.confirm(endpoint, self._deadline(None))

    def rows(self, name: str, image: bytes | str | InvalidImage, texts: Sequence[str] = ()) -> Finished:
        """The rows of an image and its texts, which hold once `confirm` has checked their endpoints.

        Raises BlipstreamError if the server cannot be reached.
        """
        self._transport.used.begin()
        found: dict[str, Any] = {"name": name, **self._of_all}
        try:
            if isinstance(image, InvalidImage):
                raise image
            encoded = self._read(image, self._deadline(None))
            found["hash"] = hashlib.sha256(encoded).hexdigest()
            found["width"], found["height"] = size_of(encoded)
            answers = self._task.ask(self, encoded, texts)
        except (InvalidRequest, ServerError) as exc:
            found["error"] = as_utf8(str(exc))
            answers = self._task.unanswered(texts)
        wholes = ({**found, **answer} for answer in answers)
        rows = [{column: whole.get(column) for column in self._task.columns} for whole in wholes]
        return Finished(rows, self._transport.used.endpoints)


def size_of(encoded: bytes) -> tuple[int, int] | tuple[None, None]:
    """Width and height in pixels, as stored. None if it is not an image that the server takes."""
    try:
        with opened(encoded) as image:
            return image.size
    except Exception:  # on bad data, PIL raises nearly every built-in type
        return None, None
