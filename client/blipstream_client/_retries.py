# SPDX-License-Identifier: Apache-2.0
"""Which failed requests are sent again, and when. A caption may be asked for twice, since asking changes nothing.

gRPC's own retry policy is not enough: it cannot tell Triton's reasons for UNAVAILABLE apart, nor go to another
endpoint.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_before_delay
from tenacity import wait_random_exponential as random_exponential

from blipstream_client._deadline import Deadline
from blipstream_client._endpoints import RoundRobin, is_endpoint_failure
from blipstream_client._errors import cancelled, client_closed
from blipstream_client._exceptions import BlipstreamError

FIRST_WAIT = 0.2  # seconds at most before the first retry, and twice as many before each further one
LONGEST_WAIT = 5.0

log = logging.getLogger("blipstream_client")

RetryingT = TypeVar("RetryingT", Retrying, AsyncRetrying)

back_off = random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)


@dataclass(frozen=True)
class RetryPolicy:
    """Transient errors are retried, with longer and longer waits, up to `retries` times and never after the deadline.

    A server that has responded before and now fails is probably being restarted. If there are any retries, it is waited
    for until the deadline: on a busy machine, a restart was seen to take 29 s.
    """

    retries: int
    endpoints: RoundRobin  # shared by all transports of a client, so that each learns from the others

    @contextmanager
    def attempts(self, kind: type[RetryingT], sleep: Callable[[float], Any], deadline: Deadline) -> Iterator[RetryingT]:
        """What calls a function again as the policy says."""
        stop_at_deadline = stop_before_delay(deadline.left())
        retrying = kind(
            sleep=sleep,
            retry=retry_if_exception(lambda exc: isinstance(exc, BlipstreamError) and exc.transient),
            stop=lambda state: self._is_enough(state) or stop_at_deadline(state),
            wait=self._wait,
            before_sleep=lambda state: self._tell(state, deadline),
            reraise=True,
        )
        try:
            yield retrying
        finally:
            retrying.iter_state.reset()  # it refers to itself, which would keep it until a full garbage collection

    def blocking(self, deadline: Deadline, closed: Event) -> AbstractContextManager[Retrying]:
        """The same for a thread. Waits end with RequestCancelled when `closed` is set."""
        if closed.is_set():
            raise client_closed()

        def sleep(seconds: float) -> None:
            if closed.wait(seconds):
                raise cancelled()

        return self.attempts(Retrying, sleep, deadline)

    def _is_enough(self, state: RetryCallState) -> bool:
        return state.attempt_number > self.retries and not (self.retries and self._is_restarting(state))

    def _is_restarting(self, state: RetryCallState) -> bool:
        return self.endpoints.have_responded and is_endpoint_failure(_error(state))

    def _tell(self, state: RetryCallState, deadline: Deadline) -> None:
        """Log, once in each outage, whom a request waits for beyond its `retries`."""
        if state.attempt_number > self.retries and self.endpoints.is_news():
            log.warning("%s. It has answered before: trying again for up to %.0f s", _error(state), deadline.left())

    def _wait(self, state: RetryCallState) -> float:
        if is_endpoint_failure(_error(state)) and self.endpoints.is_any_rested():
            return 0.0  # another endpoint can be asked at once
        return back_off(state)


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
