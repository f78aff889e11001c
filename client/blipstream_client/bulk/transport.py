# SPDX-License-Identifier: Apache-2.0
"""The transport of a run: it watches the server's load, and holds it to what it served at first."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import local
from typing import Any

from blipstream_client._balancing import BalancedTransport
from blipstream_client._deadline import Deadline
from blipstream_client._endpoints import Address, RoundRobin, is_endpoint_failure
from blipstream_client._exceptions import AccessDenied, BlipstreamError, ServerOverloaded
from blipstream_client._info import (
    ADAPTERS,
    Calibration,
    adapters_of,
    adapters_request,
    calibration_of,
    changed_adapters,
    checkpoint_of,
    defaults_of,
    retrieval_checkpoint_of,
    revision_of,
    takes_adapters,
)
from blipstream_client._notices import Waiting
from blipstream_client._requests import ConfigRequest, InferRequest, MetadataRequest, Request, ResponseT
from blipstream_client._retries import RetryPolicy
from blipstream_client._text import quoted
from blipstream_client._transport import Settings
from blipstream_client.bulk.limit import Limit

# The adapter whose captions are wanted, given the server's defaults; "" if it may be any. None: none
AdapterChoice = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Served:
    """What of a server decides its answers, beside the request. None if the server does not show it."""

    checkpoint: str | None
    defaults: Mapping[str, Any] | None  # of options, where they are not the built-in ones
    fixed: Sequence[str] | None  # names of options that requests may not set
    matching: str | None = None  # NAME@REVISION of the retrieval checkpoint, if it is asked
    calibration: Calibration | None = None  # of matching, if it is asked and calibrated
    adapters: Mapping[str, str] = field(default_factory=dict)  # revisions by name, of those that rows may have

    def difference(self, other: "Served") -> str | None:
        """The first field that differs. Checkpoints are known by their revisions. There may be more adapters."""
        mine, others = (
            vars(each) | {"checkpoint": revision_of(each.checkpoint), "matching": revision_of(each.matching)}
            for each in (self, other)
        )
        mine[ADAPTERS], others[ADAPTERS] = changed_adapters(self.adapters, other.adapters)
        return next((name for name in mine if mine[name] != others[name]), None)


class OtherServed(BlipstreamError):
    """An endpoint does not serve what the run began with."""

    def __init__(self, what: str, begun: object, found: object) -> None:
        super().__init__(f"The server's {what} is now {'unknown' if found is None else quoted(found)}")
        self.what = what
        self.begun = begun
        self.found = found


class Used(local):
    """The endpoints that a thread has used since it called `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget all."""
        self.last: int | None = None
        self.answered: set[int] = set()

    @property
    def endpoints(self) -> frozenset[int]:
        """Those whose answers count: the last one's may be an error."""
        return frozenset(self.answered if self.last is None else {*self.answered, self.last})


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
        self._models: Sequence[str] = ()
        self._adapter: AdapterChoice = lambda _defaults: None
        self._served = Served(None, None, None)
        self._seen: set[int] = set()  # endpoints that served the same and have not failed since
        self.used = Used()

    def begin(self, models: Sequence[str], adapter: AdapterChoice, deadline: Deadline) -> Served:
        """What is served, of these models, to which endpoints are held from now on. Raises BlipstreamError."""
        self._models, self._adapter = models, adapter
        self._served = self._ask(lambda request: self.send(request, deadline))
        return self._served

    def _ask(self, send: Callable[[Request[Any]], Any]) -> Served:
        """What is served, by a request, one for each model, and one for adapters."""
        checkpoint = defaults = fixed = matching = calibration = None
        adapters: dict[str, str] = {}
        can_adapt = False
        with suppress(AccessDenied):
            checkpoint = checkpoint_of(send(MetadataRequest()))
        with suppress(AccessDenied):
            for model in self._models:
                config = send(ConfigRequest(model))
                of_model, fixed_of_model = defaults_of(config)
                defaults = (defaults or {}) | of_model
                fixed = tuple(dict.fromkeys([*(fixed or ()), *fixed_of_model]))
                matching = matching or retrieval_checkpoint_of(config)
                calibration = calibration or calibration_of(config)
                can_adapt = can_adapt or takes_adapters(config)
        if can_adapt and (adapter := self._adapter(defaults or {})) is not None:
            adapters = {each.name: each.revision for each in adapters_of(send(adapters_request(adapter)))}
        return Served(checkpoint, defaults, fixed, matching, calibration, adapters)

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
        # a name, or mypy would narrow ResponseT
        wants_answer = isinstance(request, InferRequest) and request.model != ADAPTERS
        if not wants_answer:
            return self._watched(endpoint, request, deadline)
        self.used.last = endpoint
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
        self.used.answered.add(endpoint)
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
