# SPDX-License-Identifier: Apache-2.0
"""What a transport does: it sends requests to one endpoint, over gRPC or HTTP, with or without blocking."""

from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from typing import Protocol

from blipstream_client._deadline import Deadline
from blipstream_client._requests import Request, ResponseT
from blipstream_client._tls import TLS

CONNECT_SECONDS = 5.0  # to connect, before the server counts as unreachable


@dataclass(frozen=True)
class Settings:
    """What all transports of a client share."""

    headers: Mapping[str, str]  # sent with every request
    tls: TLS
    keepalive: float  # seconds of silence after which a connection in use is checked


class Transport(Protocol):
    """Sends requests to one endpoint. Any number of threads may share one."""

    def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The server's response. Raises BlipstreamError."""

    def stream(self, request: Request[ResponseT], deadline: Deadline) -> Generator[ResponseT, None, None]:
        """The server's responses as they come. Each must come before the deadline, which is renewed after each.

        Closing the generator cancels the request. Raises BlipstreamError.
        """

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""


class AsyncTransport(Protocol):
    """Sends requests to one endpoint, in one event loop."""

    async def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The server's response. Raises BlipstreamError."""

    def stream(self, request: Request[ResponseT], deadline: Deadline) -> AsyncGenerator[ResponseT, None]:
        """The server's responses as they come, with the deadline and the errors of `Transport.stream`."""

    async def aclose(self) -> None:
        """Hang up. Call it when nothing is in flight."""
