# SPDX-License-Identifier: Apache-2.0
"""A client that tells more of an image than its caption, and of the server how it copes."""

import hashlib
import json
from typing import Any

from blipstream_client._base import DEFAULT_URL
from blipstream_client._client import Client
from blipstream_client._contract import Options
from blipstream_client._exceptions import AccessDenied, InvalidImage, InvalidRequest, ServerError, ServerOverloaded
from blipstream_client._images import opened
from blipstream_client._lines import Line, Route
from blipstream_client._questions import AnswerT, Question
from blipstream_client._transport import Deadline
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.rows import Row, spelled


class Captioner(Client):
    """Rows instead of captions. Errors that are the server's and not the image's end the run."""

    def __init__(self, limit: Limit, options: Options, url: str = DEFAULT_URL, **arguments: Any) -> None:  # noqa: ANN401
        self._limit = limit
        super().__init__(url, **arguments)
        self._options = options
        self._options_text = json.dumps({name: value for name, value in options.items() if value is not None})
        self.checkpoint = self._checkpoint()

    def _open(self) -> None:
        self._line = WatchedLine(self._route, self._limit)

    def _checkpoint(self) -> str | None:
        try:
            return self.info().checkpoint
        except AccessDenied:  # the server shows its configuration to others only
            return None

    def row(self, name: str, image: bytes | str | InvalidImage) -> Row:
        """What is written of an image, or why there is none. Raises BlipstreamError if the server cannot be asked."""
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
        return Row(name=name, options=self._options_text, checkpoint=self.checkpoint, **found)


class WatchedLine(Line):
    """Tells the limit what the server takes and refuses."""

    def __init__(self, route: Route, limit: Limit) -> None:
        super().__init__(route)
        self._limit = limit

    def _attempt(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        try:
            answer = super()._attempt(question, deadline)
        except ServerOverloaded:
            self._limit.refused()
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
