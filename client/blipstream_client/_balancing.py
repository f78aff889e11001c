# SPDX-License-Identifier: Apache-2.0
"""Transports over all of a client's endpoints: they choose the endpoint for each request, and try again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, closing, contextmanager, suppress
from threading import Event
from traceback import clear_frames
from typing import Any, TypeVar

from tenacity import AsyncRetrying

from blipstream_client._deadline import Deadline
from blipstream_client._endpoints import Address
from blipstream_client._errors import broken_off, cancelled, client_closed
from blipstream_client._exceptions import ModelNotReady, RequestTimeout, ServerUnreachable
from blipstream_client._probe import Probe
from blipstream_client._requests import ReadyRequest, Request, ResponseT
from blipstream_client._retries import RetryPolicy
from blipstream_client._transport import AsyncTransport, Settings, Transport

NOT_READY = (ServerUnreachable, RequestTimeout, ModelNotReady)

T = TypeVar("T")


def connect(address: Address, settings: Settings) -> Transport:
    """The transport for the address's scheme. Nothing is sent yet."""
    # Importing either takes long, and only one is needed.
    if address.scheme.startswith("grpc"):
        from blipstream_client._grpc import GrpcTransport

        return GrpcTransport(address, settings)
    from blipstream_client._http import HttpTransport

    return HttpTransport(address, settings)


def connect_async(address: Address, settings: Settings) -> AsyncTransport:
    """The same for the running event loop."""
    if address.scheme.startswith("grpc"):
        from blipstream_client._grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address, settings)
    from blipstream_client._http import AsyncHttpTransport

    return AsyncHttpTransport(address, settings)


class BalancedTransport:
    """A transport to each endpoint, for any number of threads."""

    def __init__(self, addresses: Sequence[Address], settings: Settings, policy: RetryPolicy) -> None:
        self._addresses = addresses
        self._settings = settings
        self._policy = policy
        self._closed = Event()
        self._branches: set[BalancedTransport] = set()
        self._transports = [connect(address, settings) for address in addresses]
        self._probes = [Probe(address, settings.tls) for address in addresses]

    @contextmanager
    def branch(self) -> Iterator["BalancedTransport"]:
        """Connections of their own to the same endpoints. They are closed at the end, or with this transport."""
        branch = BalancedTransport(self._addresses, self._settings, self._policy)
        self._branches.add(branch)
        if self._closed.is_set():  # asked only now, else `close` could miss the branch
            branch.close()
        try:
            yield branch
        finally:
            self._branches.discard(branch)
            branch.close()

    def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The response of one endpoint. Raises BlipstreamError."""
        with self._policy.blocking(deadline, self._closed) as retrying:
            response: ResponseT = retrying(self._attempt, request, deadline)
        return response

    def stream(self, request: Request[ResponseT], deadline: Deadline) -> Generator[ResponseT, None, None]:
        """The responses of one endpoint. A stream is retried only before its first response. Raises BlipstreamError."""
        with self._policy.blocking(deadline, self._closed) as retrying:
            first, responses = retrying(self._begin, request, deadline)
        with closing(responses):
            if first is not None:
                yield first
            try:
                yield from responses
            except ServerUnreachable as exc:
                raise broken_off(exc) from exc

    def is_ready(self, model: str, deadline: Deadline) -> bool:
        """Whether any endpoint says that the model can serve. Each is asked once."""
        for transport, share in zip(self._transports, deadline.shares(len(self._transports)), strict=True):
            with suppress(*NOT_READY):
                if transport.send(ReadyRequest(model), share):
                    return True
        return False

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._closed.set()
        for branch in list(self._branches):
            branch.close()
        for transport in self._transports:
            transport.close()

    def _attempt(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        with self._policy.endpoints.turn() as endpoint, self._explained(endpoint):
            return self._send_to(endpoint, request, deadline)

    @contextmanager
    def _explained(self, endpoint: int) -> Iterator[None]:
        """Find out why the endpoint does not answer, unless one ever did."""
        try:
            yield
        except ServerUnreachable as exc:
            if self._policy.endpoints.have_responded or (error := self._probes[endpoint].error(exc)) is exc:
                raise
            error.transient = len(self._probes) > 1  # another endpoint may answer
            raise error from exc

    def _send_to(self, endpoint: int, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        return self._transports[endpoint].send(request, deadline)

    def _begin(
        self, request: Request[ResponseT], deadline: Deadline
    ) -> tuple[ResponseT | None, Generator[ResponseT, None, None]]:
        with self._policy.endpoints.turn() as endpoint, self._explained(endpoint):
            responses = self._transports[endpoint].stream(request, deadline)
            return next(responses, None), responses


class AsyncBalancedTransport:
    """A transport to each endpoint, for the running event loop."""

    def __init__(self, addresses: Sequence[Address], settings: Settings, policy: RetryPolicy) -> None:
        self._policy = policy
        self._closed = False
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._transports = [connect_async(address, settings) for address in addresses]
        self._probes = [Probe(address, settings.tls) for address in addresses]

    async def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The response of one endpoint. Raises BlipstreamError."""
        with self._retrying(deadline) as retrying:
            return await self._until_closed(retrying(self._attempt, request, deadline))

    async def stream(self, request: Request[ResponseT], deadline: Deadline) -> AsyncGenerator[ResponseT, None]:
        """The responses of one endpoint. A stream is retried only before its first response. Raises BlipstreamError."""
        response: ResponseT | None
        responses: AsyncGenerator[ResponseT, None]
        with self._retrying(deadline) as retrying:
            response, responses = await self._until_closed(retrying(self._begin, request, deadline))
        async with aclosing(responses):
            while response is not None:
                yield response
                try:
                    response = await self._until_closed(anext(responses, None))
                except ServerUnreachable as exc:
                    raise broken_off(exc) from exc

    async def is_ready(self, model: str, deadline: Deadline) -> bool:
        """Whether any endpoint says that the model can serve. Each is asked once."""
        for transport, share in zip(self._transports, deadline.shares(len(self._transports)), strict=True):
            with suppress(*NOT_READY):
                if await self._until_closed(transport.send(ReadyRequest(model), share)):
                    return True
        return False

    async def aclose(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._closed = True
        for future in self._in_flight:
            future.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        for transport in self._transports:
            await transport.aclose()

    def _retrying(self, deadline: Deadline) -> AbstractContextManager[AsyncRetrying]:
        if self._closed:
            raise client_closed()
        return self._policy.attempts(AsyncRetrying, asyncio.sleep, deadline)

    async def _until_closed(self, awaitable: Awaitable[T]) -> T:
        """Await in a task of its own, so that closing can cancel it and not the caller's task."""
        future: asyncio.Future[T] = asyncio.ensure_future(awaitable)
        self._in_flight.add(future)
        try:
            return await future
        except asyncio.CancelledError as exc:
            clear_frames(exc.__traceback__)  # they hold the call, and so its connection, until a garbage collection
            caller = asyncio.current_task()
            if self._closed and not (caller and caller.cancelling()):
                raise cancelled() from None
            raise
        finally:
            self._in_flight.discard(future)

    async def _attempt(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        with self._policy.endpoints.turn() as endpoint:
            async with self._explained(endpoint):
                return await self._transports[endpoint].send(request, deadline)

    @asynccontextmanager
    async def _explained(self, endpoint: int) -> AsyncIterator[None]:
        """Find out why the endpoint does not answer, unless one ever did."""
        try:
            yield
        except ServerUnreachable as exc:
            probe = self._probes[endpoint]
            if self._policy.endpoints.have_responded or (error := await asyncio.to_thread(probe.error, exc)) is exc:
                raise
            error.transient = len(self._probes) > 1
            raise error from exc

    async def _begin(
        self, request: Request[ResponseT], deadline: Deadline
    ) -> tuple[ResponseT | None, AsyncGenerator[ResponseT, None]]:
        with self._policy.endpoints.turn() as endpoint:
            async with self._explained(endpoint):
                responses = self._transports[endpoint].stream(request, deadline)
                return await anext(responses, None), responses
