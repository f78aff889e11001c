# SPDX-License-Identifier: Apache-2.0
"""A client that tells more of an image than its caption, and of the server how it copes."""

import hashlib
import json
from collections.abc import Set as AbstractSet
from dataclasses import replace
from threading import local
from typing import Any, NamedTuple

from blipstream_client._base import DEFAULT_URL
from blipstream_client._client import Client
from blipstream_client._contract import Options
from blipstream_client._endpoints import Rotation, says_that_server_is_ill
from blipstream_client._exceptions import (
    AccessDenied,
    BlipstreamError,
    InvalidImage,
    InvalidRequest,
    ServerError,
    ServerOverloaded,
    quoted,
)
from blipstream_client._images import opened
from blipstream_client._info import checkpoint_of, revision_of
from blipstream_client._lines import Line, Route
from blipstream_client._questions import AnswerT, GetServer, Infer, Question
from blipstream_client._transport import Deadline
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.rows import Row, spelled


class OtherCheckpoint(BlipstreamError):
    """An endpoint has another checkpoint than the run began with."""

    def __init__(self, found: str | None) -> None:
        super().__init__(f"The server's checkpoint is now {quoted(found)}")
        self.found = found


class Finished(NamedTuple):
    """A row, and the number of the endpoint whose answer it holds, if it holds one."""

    row: Row
    endpoint: int | None


class Captioner(Client):
    """Rows instead of captions. Errors that are the server's and not the image's end the run."""

    def __init__(self, limit: Limit, options: Options, url: str = DEFAULT_URL, **arguments: Any) -> None:  # noqa: ANN401
        self._limit = limit
        super().__init__(url, **arguments)
        self._options = options
        self._options_text = json.dumps({name: value for name, value in options.items() if value is not None})
        self.checkpoint = self._watched.begin(self._deadline(None))

    def _open(self) -> None:
        self._line = self._watched = WatchedLine(self._route, self._limit)

    def confirm(self, endpoints: AbstractSet[int]) -> None:
        """See that these still have the checkpoint, with all the patience of an image. Raises BlipstreamError."""
        for endpoint in endpoints:
            self._watched.confirm(endpoint, self._deadline(None))

    def row(self, name: str, image: bytes | str | InvalidImage) -> Finished:
        """What is written of an image, or why there is none, once `confirm` has seen its endpoint again.

        Raises BlipstreamError if the server cannot be asked.
        """
        self._watched.last.endpoint = None
        found: dict[str, Any] = dict.fromkeys(("caption", "score", "width", "height", "hash", "error"))
        try:
            if isinstance(image, InvalidImage):
                raise image
            encoded = self._read(image, self._deadline(None))
            found["hash"] = hashlib.sha256(encoded).hexdigest()
            found["width"], found["height"] = size_of(encoded)
            caption = self.caption(encoded, **self._options)
            found |= {"caption": caption.text, "score": caption.score}
        except (InvalidRequest, ServerError) as exc:
            found["error"] = spelled(str(exc))
        row = Row(name=name, options=self._options_text, checkpoint=self.checkpoint, **found)
        return Finished(row, self._watched.last.endpoint)


class WatchedLine(Line):
    """Tells the limit what the server takes and refuses, and asks no endpoint whose checkpoint is another."""

    def __init__(self, route: Route, limit: Limit) -> None:
        super().__init__(route)
        self._limit = limit
        self._checkpoint: str | None = None
        self._seen: set[int] = set()  # endpoints that had the checkpoint, and have failed at nothing since
        self.last = local()  # .endpoint: the one that this thread asked last

    def begin(self, deadline: Deadline) -> str | None:
        """The checkpoint, which is to stay the same from now on; None where it is not shown. Raises BlipstreamError."""
        try:
            self._checkpoint = checkpoint_of(self.ask(GetServer(), deadline))
        except AccessDenied:
            self._checkpoint = None
        return self._checkpoint

    def confirm(self, endpoint: int, deadline: Deadline) -> None:
        """See that it has the checkpoint, and wait for it if it is away. Raises BlipstreamError."""
        alone = replace(self._route, rotation=Rotation(1))

        def look() -> None:
            with alone.rotation.turn():
                self._look(endpoint, deadline)

        with alone.retrying(deadline, self._closed) as retrying:
            retrying(look)

    def _look(self, endpoint: int, deadline: Deadline) -> None:
        try:
            found = checkpoint_of(self._transports[endpoint].ask(GetServer(), deadline))
        except AccessDenied:
            found = None
        if revision_of(found) != revision_of(self._checkpoint):
            raise OtherCheckpoint(found)

    def _ask(self, endpoint: int, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        wants_caption = isinstance(question, Infer)
        if not wants_caption:
            return super()._ask(endpoint, question, deadline)
        self.last.endpoint = endpoint
        if endpoint not in self._seen:
            self._look(endpoint, deadline)
            self._seen.add(endpoint)
        try:
            answer = super()._ask(endpoint, question, deadline)
        except ServerOverloaded:
            self._limit.refused()
            raise
        except BlipstreamError as exc:
            if says_that_server_is_ill(exc):
                self._seen.discard(endpoint)  # what comes back may be another
            raise
        self._limit.taken()
        return answer


def size_of(encoded: bytes) -> tuple[int, int] | tuple[None, None]:
    """Width and height as stored, if it is an image that the server takes."""
    try:
        with opened(encoded) as image:
            return image.size
    except Exception:  # on bad data PIL raises nearly every built-in type
        return None, None
