# SPDX-License-Identifier: Apache-2.0
"""Lines to all of a client's endpoints: which is asked, and whether again, since captions may be asked for twice.

gRPC's own retry policy does not do: it cannot tell Triton's reasons for UNAVAILABLE apart, nor go to another endpoint.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, closing, contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from traceback import clear_frames
from typing import Any, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from blipstream_client._endpoints import Address, Rotation, says_that_server_is_ill
from blipstream_client._exceptions import (
    BlipstreamError,
    ModelNotReady,
    RequestTimeout,
    ServerUnreachable,
    broken_off,
    cancelled,
    client_closed,
)
from blipstream_client._questions import AnswerT, IsReady, Question
from blipstream_client._transport import Deadline, Settings, connect, connect_async

FIRST_WAIT = 0.2  # seconds at most before the first retry, and twice as much before each further one
LONGEST_WAIT = 5.0
NOT_READY = (ServerUnreachable, RequestTimeout, ModelNotReady)

T = TypeVar("T")
RetryingT = TypeVar("RetryingT", Retrying, AsyncRetrying)

_back_off = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)


@dataclass(frozen=True)
class Route:
    """Where questions go, and how often."""

    addresses: Sequence[Address]
    settings: Settings
    retries: int
    rotation: Rotation  # shared by all lines of a client, so that one learns from the other

    @contextmanager
    def policy(self, kind: type[RetryingT], sleep: Callable[[float], Any], deadline: Deadline) -> Iterator[RetryingT]:
        """Calls a function again after what is transient, with longer and longer waits, but not beyond the deadline."""
        retrying = kind(
            sleep=sleep,
            retry=retry_if_exception(lambda exc: isinstance(exc, BlipstreamError) and exc.transient),
            stop=stop_after_attempt(1 + self.retries) | stop_before_delay(deadline.left()),
            wait=self._wait,
            reraise=True,
        )
        try:
            yield retrying
        finally:
            retrying.iter_state.reset()  # it holds the object itself, which would stay until a full garbage collection

    def retrying(self, deadline: Deadline, closed: Event) -> AbstractContextManager[Retrying]:
        """Calls a function by that policy, until `closed` is set. Raises RequestCancelled."""
        if closed.is_set():
            raise client_closed()

        def sleep(seconds: float) -> None:
            if closed.wait(seconds):
                raise cancelled()

        return self.policy(Retrying, sleep, deadline)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        if says_that_server_is_ill(error) and self.rotation.has_rested():
            return 0.0  # another endpoint can be asked at once
        return _back_off(state)


class Line:
    """A connection to each endpoint, for any number of threads."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._closed = Event()
        self._branches: set[Line] = set()
        self._transports = [connect(address, route.settings) for address in route.addresses]

    @contextmanager
    def branch(self) -> Iterator["Line"]:
        """A line of its own, which is closed at the end, or as soon as this one is."""
        branch = Line(self._route)
        self._branches.add(branch)
        if self._closed.is_set():  # asked after it was added, lest `close` miss it
            branch.close()
        try:
            yield branch
        finally:
            self._branches.discard(branch)
            branch.close()

    def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The answer of one endpoint. Raises BlipstreamError."""
        with self._route.retrying(deadline, self._closed) as retrying:
            answer: AnswerT = retrying(self._attempt, question, deadline)
        return answer

    def stream(self, question: Question[AnswerT], deadline: Deadline) -> Generator[AnswerT, None, None]:
        """The answers of one endpoint; another is asked only before the first. Raises BlipstreamError."""
        with self._route.retrying(deadline, self._closed) as retrying:
            first, answers = retrying(self._begin, question, deadline)
        with closing(answers):
            if first is not None:
                yield first
            try:
                yield from answers
            except ServerUnreachable as exc:
                raise broken_off(exc) from exc

    def is_ready(self, model: str, deadline: Deadline) -> bool:
        """Whether any endpoint says that the model can serve; none is asked twice."""
        for transport, share in zip(self._transports, deadline.shares(len(self._transports)), strict=True):
            with suppress(*NOT_READY):
                if transport.ask(IsReady(model), share):
                    return True
        return False

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._closed.set()
        for branch in list(self._branches):
            branch.close()
        for transport in self._transports:
            transport.close()

    def _attempt(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        with self._route.rotation.turn() as index:
            return self._ask(index, question, deadline)

    def _ask(self, endpoint: int, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        return self._transports[endpoint].ask(question, deadline)

    def _begin(
        self, question: Question[AnswerT], deadline: Deadline
    ) -> tuple[AnswerT | None, Generator[AnswerT, None, None]]:
        with self._route.rotation.turn() as index:
            answers = self._transports[index].stream(question, deadline)
            return next(answers, None), answers


class AsyncLine:
    """A connection to each endpoint, for the event loop that runs."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._closed = False
        self._asking: set[asyncio.Future[Any]] = set()
        self._transports = [connect_async(address, route.settings) for address in route.addresses]

    async def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The answer of one endpoint. Raises BlipstreamError."""
        with self._retrying(deadline) as retrying:
            return await self._until_closed(retrying(self._attempt, question, deadline))

    async def stream(self, question: Question[AnswerT], deadline: Deadline) -> AsyncGenerator[AnswerT, None]:
        """The answers of one endpoint; another is asked only before the first. Raises BlipstreamError."""
        answer: AnswerT | None
        answers: AsyncGenerator[AnswerT, None]
        with self._retrying(deadline) as retrying:
            answer, answers = await self._until_closed(retrying(self._begin, question, deadline))
        async with aclosing(answers):
            while answer is not None:
                yield answer
                try:
                    answer = await self._until_closed(anext(answers, None))
                except ServerUnreachable as exc:
                    raise broken_off(exc) from exc

    def _retrying(self, deadline: Deadline) -> AbstractContextManager[AsyncRetrying]:
        if self._closed:
            raise client_closed()
        return self._route.policy(AsyncRetrying, asyncio.sleep, deadline)

    async def _until_closed(self, awaitable: Awaitable[T]) -> T:
        """In a task of its own, so that closing can end it and leave the caller's task alone."""
        asking: asyncio.Future[T] = asyncio.ensure_future(awaitable)
        self._asking.add(asking)
        try:
            return await asking
        except asyncio.CancelledError as exc:
            clear_frames(exc.__traceback__)  # they hold the call, and so its connection, until a garbage collection
            caller = asyncio.current_task()
            if self._closed and not (caller and caller.cancelling()):
                raise cancelled() from None
            raise
        finally:
            self._asking.discard(asking)

    async def is_ready(self, model: str, deadline: Deadline) -> bool:
        """Whether any endpoint says that the model can serve; none is asked twice."""
        for transport, share in zip(self._transports, deadline.shares(len(self._transports)), strict=True):
            with suppress(*NOT_READY):
                if await self._until_closed(transport.ask(IsReady(model), share)):
                    return True
        return False

    async def aclose(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._closed = True
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        for transport in self._transports:
            await transport.aclose()

    async def _attempt(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        with self._route.rotation.turn() as index:
            return await self._transports[index].ask(question, deadline)

    async def _begin(
        self, question: Question[AnswerT], deadline: Deadline
    ) -> tuple[AnswerT | None, AsyncGenerator[AnswerT, None]]:
        with self._route.rotation.turn() as index:
            answers = self._transports[index].stream(question, deadline)
            return await anext(answers, None), answers
