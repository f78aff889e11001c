# SPDX-License-Identifier: Apache-2.0
"""A client that makes output rows of images, watches the server's load, and holds it to what it served at first."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import local
from typing import Any, NamedTuple

from PIL import Image

from blipstream_client._balancing import BalancedTransport
from blipstream_client._base import DEFAULT_TIMEOUT, DEFAULT_URL
from blipstream_client._client import Client
from blipstream_client._deadline import Deadline
from blipstream_client._endpoints import Address, RoundRobin, is_endpoint_failure
from blipstream_client._exceptions import (
    AccessDenied,
    BlipstreamError,
    InvalidImage,
    InvalidRequest,
    ServerError,
    ServerOverloaded,
)
from blipstream_client._images import opened
from blipstream_client._info import checkpoint_of, defaults_of, revision_of
from blipstream_client._notices import Waiting
from blipstream_client._options import Options
from blipstream_client._requests import ConfigRequest, InferRequest, MetadataRequest, Request, ResponseT
from blipstream_client._retries import RetryPolicy
from blipstream_client._text import quoted
from blipstream_client._transport import Settings
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.rows import Row, as_utf8


@dataclass(frozen=True)
class Served:
    """What of a server decides its captions, beside the request. None if the server does not show it."""

    checkpoint: str | None
    defaults: Mapping[str, Any] | None  # of options, where they are not the built-in ones
    fixed: Sequence[str] | None  # names of options that requests may not set

    def difference(self, other: "Served") -> str | None:
        """The first field that differs. A checkpoint is known by its revision."""
        mine, others = (vars(each) | {"checkpoint": revision_of(each.checkpoint)} for each in (self, other))
        return next((name for name in mine if mine[name] != others[name]), None)


class OtherServed(BlipstreamError):
    """An endpoint does not serve what the run began with."""

    def __init__(self, what: str, begun: object, found: object) -> None:
        super().__init__(f"The server's {what} is now {'unknown' if found is None else quoted(found)}")
        self.what = what
        self.begun = begun
        self.found = found


class Finished(NamedTuple):
    """A row, and the endpoint that its caption comes from. None if the row has no caption."""

    row: Row
    endpoint: int | None


class Captioner(Client):
    """Makes rows. An error of the server, unlike one of the image, ends the run."""

    def __init__(self, limit: Limit, options: Options, url: str = DEFAULT_URL, **arguments: Any) -> None:  # noqa: ANN401
        self._limit = limit
        self._waiting = Waiting(url, arguments.get("timeout", DEFAULT_TIMEOUT))
        super().__init__(url, **arguments)
        self._options = options
        self._options_text = json.dumps({name: value for name, value in options.items() if value is not None})
        with self._waiting:
            self._waiting.begin()
            self.served = self._transport.begin(self._model, self._deadline(None))
        self._defaults_text = None if self.served.defaults is None else json.dumps(self.served.defaults)

    def _open(self) -> None:
        arguments = self._addresses, self._settings, self._policy, self._limit, self._waiting
        self._transport: WatchedTransport = WatchedTransport(*arguments)

    def close(self) -> None:
        """Hang up. Requests of other threads end with RequestCancelled."""
        with self._waiting:
            super().close()

    def check_options(self) -> None:
        """Caption a plain image. Raises InvalidRequest if the server refuses these options for any image."""
        if self._options_text == "{}":
            return
        with suppress(InvalidImage, ServerError, OtherServed):  # the images meet them, and have their own answer
            self.caption(Image.new("RGB", (64, 64)), **self._options)

    def confirm(self, endpoints: AbstractSet[int]) -> None:
        """Check that these endpoints still serve the same, with an image's timeout. Raises BlipstreamError."""
        for endpoint in endpoints:
            self._transport.confirm(endpoint, self._deadline(None))

    def row(self, name: str, image: bytes | str | InvalidImage) -> Finished:
        """The row of an image, which holds once `confirm` has checked its endpoint.

        Raises BlipstreamError if the server cannot be reached.
        """
        self._transport.last.endpoint = None
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
            found["error"] = as_utf8(str(exc))
        row = Row(
            name=name,
            options=self._options_text,
            defaults=self._defaults_text,
            checkpoint=self.served.checkpoint,
            **found,
        )
        return Finished(row, self._transport.last.endpoint)


class WatchedTransport(BalancedTransport):
    """Tells the limit what the server accepts and refuses, and uses no endpoint with another checkpoint or defaults.

    If no server answers, whoever started the run is told.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        settings: Settings,
        policy: RetryPolicy,
        limit: Limit,
        waiting: Waiting,
    ) -> None:
        super().__init__(addresses, settings, policy)
        self._limit = limit
        self._waiting = waiting
        self._model = ""
        self._served = Served(None, None, None)
        self._seen: set[int] = set()  # endpoints that served the same and have not failed since
        self.last = local()  # .endpoint: the last one that this thread used

    def begin(self, model: str, deadline: Deadline) -> Served:
        """What is served, to which endpoints are held from now on. Raises BlipstreamError."""
        self._model = model
        self._served = self._ask(lambda request: self.send(request, deadline))
        return self._served

    def _ask(self, send: Callable[[Request[Mapping[str, Any]]], Mapping[str, Any]]) -> Served:
        """What is served, by two requests."""
        checkpoint = defaults = fixed = None
        with suppress(AccessDenied):
            checkpoint = checkpoint_of(send(MetadataRequest()))
        with suppress(AccessDenied):
            defaults, fixed = defaults_of(send(ConfigRequest(self._model)))
        return Served(checkpoint, defaults, fixed)

    def confirm(self, endpoint: int, deadline: Deadline) -> None:
        """Check that the endpoint still serves the same, with retries. Raises BlipstreamError."""
        policy = replace(self._policy, endpoints=RoundRobin(1))

        def check() -> None:
            with policy.endpoints.turn():
                self._check(endpoint, deadline)

        with policy.blocking(deadline, self._closed) as retrying:
            retrying(check)

    def _check(self, endpoint: int, deadline: Deadline) -> None:
        found = self._ask(lambda request: self._watched(endpoint, request, deadline))
        if what := self._served.difference(found):
            raise OtherServed(what, getattr(self._served, what), getattr(found, what))

    def _send_to(self, endpoint: int, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        wants_caption = isinstance(request, InferRequest)  # a name, or mypy would narrow ResponseT
        if not wants_caption:
            return self._watched(endpoint, request, deadline)
        self.last.endpoint = endpoint
        if endpoint not in self._seen:
            self._check(endpoint, deadline)
            self._seen.add(endpoint)
        try:
            response = self._watched(endpoint, request, deadline)
        except ServerOverloaded:
            self._limit.refused()
            raise
        except BlipstreamError as exc:
            if is_endpoint_failure(exc):
                self._seen.discard(endpoint)  # it may come back with another checkpoint or other defaults
            raise
        self._limit.accepted()
        return response

    def _watched(self, endpoint: int, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        try:
            response = super()._send_to(endpoint, request, deadline)
        except BlipstreamError as exc:
            if is_endpoint_failure(exc):
                self._waiting.begin(str(exc))
            raise
        self._waiting.end()
        return response


def size_of(encoded: bytes) -> tuple[int, int] | tuple[None, None]:
    """Width and height in pixels, as stored. None if it is not an image that the server takes."""
    try:
        with opened(encoded) as image:
            return image.size
    except Exception:  # on bad data, PIL raises nearly every built-in type
        return None, None
