# SPDX-License-Identifier: Apache-2.0
"""What every way of talking to a server can do, waiting for it or not."""

import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from blipstream_client._endpoints import Address
from blipstream_client._questions import AnswerT, Question
from blipstream_client._tls import TLS

CONNECT_SECONDS = 5.0  # to connect, before the server counts as unreachable


class Deadline:
    """When a request's time is up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """As much time again, from now on."""
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds until then; a moment, where there are none."""
        return max(self._end - time.monotonic(), 0.001)

    def shares(self, count: int) -> Iterator["Deadline"]:
        """Deadlines of what is done one after the other: each has an even share of the time that is left by then."""
        for remaining in range(count, 0, -1):
            yield Deadline(self.left() / remaining)

    def microseconds_left(self) -> int:
        """The same, as Triton's request parameter `timeout` wants it.

        A model whose queue policy has `allow_timeout_override` then drops what nobody waits for any more; others
        pay no heed to it.
        """
        return int(self.left() * 1e6)

    def check(self) -> None:
        """Raises TimeoutError if it has passed."""
        if self.is_over():
            raise TimeoutError

    def is_over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self._end


@dataclass(frozen=True)
class Settings:
    """How to talk to servers."""

    headers: Mapping[str, str]  # to send with every request
    tls: TLS
    keepalive: float  # seconds of silence after which a connection in use is checked


class StatusError(Exception):
    """An answer that is an error, with its status in either protocol's words; "" where they have none."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Transport(Protocol):
    """Talks to one endpoint. Any number of threads may share one."""

    def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""

    def stream(self, question: Question[AnswerT], deadline: Deadline) -> Generator[AnswerT, None, None]:
        """The server's answers as they come, each within the deadline, which is renewed when the next is asked for.

        Closing it hangs up. Raises BlipstreamError.
        """

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""


class AsyncTransport(Protocol):
    """Talks to one endpoint, in one event loop."""

    async def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""

    def stream(self, question: Question[AnswerT], deadline: Deadline) -> AsyncGenerator[AnswerT, None]:
        """The server's answers, as `Transport.stream` has them."""

    async def aclose(self) -> None:
        """Hang up, once nothing is in flight."""


def connect(address: Address, settings: Settings) -> Transport:
    """The transport for the address's scheme. Nothing is sent yet."""
    # Each one's imports are slow, and only one is needed.
    if address.scheme.startswith("grpc"):
        from blipstream_client._grpc import GrpcTransport

        return GrpcTransport(address, settings)
    from blipstream_client._http import HttpTransport

    return HttpTransport(address, settings)


def connect_async(address: Address, settings: Settings) -> AsyncTransport:
    """The same for the event loop that runs."""
    if address.scheme.startswith("grpc"):
        from blipstream_client._grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address, settings)
    from blipstream_client._http import AsyncHttpTransport

    return AsyncHttpTransport(address, settings)
