# SPDX-License-Identifier: Apache-2.0
"""The address of a server, and what every way of talking to it can do."""

from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from blipstream_client._contract import Tensors
from blipstream_client._exceptions import InvalidURL

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 443, "http": 8000, "https": 443}


class Address(NamedTuple):
    """Where a server is."""

    url: str  # as the caller wrote it
    scheme: str  # a key of DEFAULT_PORTS
    host: str
    port: int
    path: str  # before /v2, for HTTP behind a proxy


def parse_url(url: str) -> Address:
    """SCHEME://HOST[:PORT][/PATH]. Raises InvalidURL."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:  # such as a port that is not a number
        scheme, host, port = "", None, None
    path = parts.path.rstrip("/") if scheme else ""
    if scheme not in DEFAULT_PORTS or not host or (path and not scheme.startswith("http")):
        raise InvalidURL(
            f"Expected an address such as grpc://localhost:8001 or http://localhost:8000, got {url!r};"
            f" the schemes are {', '.join(DEFAULT_PORTS)}"
        )
    return Address(url, scheme, host, port or DEFAULT_PORTS[scheme], path)


class Transport(Protocol):
    """Carries tensors to a model and back. Any number of threads may share one."""

    def infer(self, model: str, inputs: Tensors) -> Tensors:
        """The model's outputs for one request. Raises BlipstreamError."""

    def is_model_ready(self, model: str) -> bool:
        """Whether the server says that the model can serve. Raises BlipstreamError."""

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""


def connect(address: Address, timeout: float) -> Transport:
    """The transport for the address's scheme, with `timeout` in seconds. Nothing is sent yet."""
    # Each one's imports are slow, and only one is needed.
    if address.scheme.startswith("grpc"):
        from blipstream_client._grpc import GrpcTransport

        return GrpcTransport(address, timeout)
    from blipstream_client._http import HttpTransport

    return HttpTransport(address, timeout)
