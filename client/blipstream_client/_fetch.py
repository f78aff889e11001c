# SPDX-License-Identifier: Apache-2.0
"""Image URLs -> bytes, fetched by the client and never by the server.

A URL that came from a stranger must not reach what only this machine can reach. So each name is resolved here, every
one of its addresses must be public, and the connection goes to an address that was checked; redirects pass the same
gate. The caller's headers for the Triton server are not sent.
"""

import socket
import ssl
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from blipstream_client._exceptions import InvalidImage
from blipstream_client._files import MAX_BYTES
from blipstream_client._streams import Stream
from blipstream_client._transport import CONNECT_SECONDS, Deadline, StatusError

MAX_REDIRECTS = 5
MAX_SECONDS = 20.0  # for all of it, with retries
REDIRECTS = {301, 302, 303, 307, 308}
FOR_NOW = {"408", "429", "500", "502", "503", "504"}  # statuses that may be others soon
HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": "blipstream-client",
}
URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"  # that need no quoting
NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 addresses in IPv6 ones
TIMEOUTS = (httpcore2.TimeoutException, TimeoutError)


class Refused(Exception):
    """What the URL asks for is not allowed."""


def is_url(image: object) -> bool:
    """Whether what the caller calls an image is to be fetched."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def fetch(url: str, limit: Deadline, *, allow_private: bool = False) -> bytes:
    """The bytes at a URL. Raises InvalidImage, which is transient if they may be had later."""
    try:
        with httpcore2.ConnectionPool(network_backend=CheckedBackend(limit, allow_private=allow_private)) as pool:
            return _follow(pool, url)
    except Refused as exc:
        raise InvalidImage(f"Refused to fetch {url}: {exc}") from exc
    except (*TIMEOUTS, httpcore2.NetworkError, httpcore2.ProtocolError, OSError, ValueError, StatusError) as exc:
        slow = isinstance(exc, TIMEOUTS)
        reason = f"it took more than {limit.seconds:.3g} s" if slow else str(exc) or type(exc).__name__
        error = InvalidImage(f"Cannot fetch {url}: {reason}")
        error.transient = _may_pass(exc)
        raise error from exc


def _may_pass(error: Exception) -> bool:
    """Whether the same URL may answer later."""
    match error:
        case StatusError():
            return error.status in FOR_NOW
        case socket.gaierror():
            return error.errno == socket.EAI_AGAIN
        case httpcore2.ConnectError(args=(ssl.SSLCertVerificationError(),)):
            return False
        case _:
            return not isinstance(error, (httpcore2.LocalProtocolError, ValueError))


def _follow(pool: httpcore2.ConnectionPool, url: str) -> bytes:
    """What is at the end of the redirects."""
    for _ in range(1 + MAX_REDIRECTS):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"expected an address that begins with http:// or https://, got {url}")
        target = httpcore2.URL(
            scheme=parts.scheme,
            host=parts.hostname.encode("idna"),
            port=parts.port,
            target=quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", URL_CHARACTERS),
        )
        with pool.stream("GET", target, headers=HEADERS) as response:
            location = next((value for name, value in response.headers if name.lower() == b"location"), None)
            if response.status in REDIRECTS and location is not None:
                url = urljoin(url, location.decode("latin-1"))
                continue
            if response.status != 200:
                raise StatusError(str(response.status), f"the server answered {response.status}")
            return _read(response)
    raise Refused(f"it redirects more than {MAX_REDIRECTS} times")


def _read(response: httpcore2.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_stream():
        content += chunk
        if len(content) > MAX_BYTES:
            raise Refused(f"it is larger than {MAX_BYTES >> 20} MiB")
    return bytes(content)


class CheckedBackend(httpcore2.SyncBackend):
    """Connects to public addresses only, and ends in time whatever the other side does."""

    def __init__(self, limit: Deadline, *, allow_private: bool) -> None:
        self._limit = limit
        self._allow_private = allow_private

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection to the first of the host's addresses that answers. Raises Refused if one is not public."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        for address in addresses:
            if not (self._allow_private or is_public(address)):
                raise Refused(
                    f"{host} is {address}, which is not a public address; allow_private_urls=True would permit it"
                )
        for address in addresses:
            try:
                seconds = min(self._limit.left(), CONNECT_SECONDS)
                stream = super().connect_tcp(address, port, seconds, local_address, socket_options)
                return LimitedStream(stream, self._limit)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                error = exc
        raise error


class LimitedStream(Stream):
    """A connection that no slow peer can keep beyond the limit."""

    def __init__(self, stream: httpcore2.NetworkStream, limit: Deadline) -> None:
        super().__init__(stream)
        self._limit = limit

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """What came next. Raises TimeoutError."""
        return super().read(max_bytes, self._left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send all of it. Raises TimeoutError."""
        super().write(buffer, self._left())

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        """The same connection, encrypted from here on. Raises httpcore2.ConnectTimeout."""
        return super().start_tls(ssl_context, server_hostname, self._limit.left())

    def _left(self) -> float:
        if self._limit.is_over():
            raise TimeoutError
        return self._limit.left()


def is_public(address: str) -> bool:
    """Whether anyone on the internet could reach it, so that it tells nothing that only this machine may see."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or ip.teredo:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)
