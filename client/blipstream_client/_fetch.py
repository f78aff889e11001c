# SPDX-License-Identifier: Apache-2.0
"""Image URLs -> bytes, fetched by the client and never by the server.

A URL may come from a stranger, and must not reach hosts that only this machine can reach. So names are resolved here,
each address of a name must be public, and the connection goes to an address that was checked. Redirects are checked in
the same way. The caller's headers for the Triton server are not sent, and a URL's password goes to its own host only.

General HTTP clients are not enough: none lets the caller check each address, limits the time of a whole fetch, or
bounds the size after decompression.
"""

import socket
import ssl
import zlib
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.message import Message
from http.cookiejar import CookieJar
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import Request as CookieRequest

import httpcore2

from blipstream_client._deadline import Deadline
from blipstream_client._errors import StatusError
from blipstream_client._exceptions import InvalidImage
from blipstream_client._files import MAX_BYTES
from blipstream_client._network import AbortableBackend, Stream
from blipstream_client._text import LONGEST_SENTENCE, excerpt, shown_url
from blipstream_client._transport import CONNECT_SECONDS

MAX_REDIRECTS = 5
MAX_SECONDS = 20.0  # for a whole fetch, with retries
REDIRECTS = {301, 302, 303, 307, 308}
TRANSIENT = {"408", "429", "500", "502", "503", "504"}  # statuses after which a retry may succeed
HEADERS = {
    "Accept": "image/*, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": "blipstream-client",
}
COMPRESSIONS = {"gzip", "x-gzip", "deflate"}  # some servers send them without being asked
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # zlib tells them apart by their first bytes
URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"  # not to be quoted
RAW_BYTES = "surrogateescape"  # a redirect may hold any bytes, which are quoted as they are
NAT64 = IPv6Network("64:ff9b::/96")  # IPv6 addresses that stand for IPv4 ones
TIMEOUTS = (httpcore2.TimeoutException, TimeoutError)
FAILURES = (*TIMEOUTS, httpcore2.NetworkError, httpcore2.ProtocolError, OSError, ValueError, StatusError, zlib.error)


class Refused(Exception):
    """The URL is not allowed, or its content is not."""


def is_url(image: object) -> bool:
    """Whether an image is given by its URL."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def fetch(url: str, limit: Deadline, *, allow_private: bool = False, backend: AbortableBackend | None = None) -> bytes:
    """The bytes at a URL. Aborting the backend ends the fetch. Raises InvalidImage, which may be transient."""
    try:
        checked = CheckedBackend(backend or AbortableBackend(), limit, allow_private=allow_private)
        with httpcore2.ConnectionPool(network_backend=checked) as pool:
            return _follow(pool, url)
    except Refused as exc:
        raise InvalidImage(f"Refused to fetch {shown_url(url)}: {exc}") from exc
    except FAILURES as exc:
        reason = excerpt(exc, LONGEST_SENTENCE) or type(exc).__name__
        if isinstance(exc, TIMEOUTS):
            reason = f"it took more than {limit.seconds:.3g} s"
        error = InvalidImage(f"Cannot fetch {shown_url(url)}: {reason}")
        error.transient = _is_transient(exc)
        raise error from exc


def _is_transient(error: Exception) -> bool:
    """Whether a retry may succeed."""
    match error:
        case StatusError():
            return error.status in TRANSIENT
        case socket.gaierror():
            return error.errno == socket.EAI_AGAIN
        case httpcore2.ConnectError(args=(ssl.SSLCertVerificationError(),)):
            return False
        case _:
            return not isinstance(error, (httpcore2.LocalProtocolError, ValueError, zlib.error))


@dataclass(frozen=True)
class Session:
    """Cookies and passwords during one fetch. Each host is sent only its own."""

    cookies: CookieJar = field(default_factory=CookieJar)
    passwords: dict[str, str] = field(default_factory=dict)  # Authorization headers, by origin

    def headers(self, origin: str, parts: SplitResult, request: CookieRequest) -> list[tuple[bytes | str, bytes | str]]:
        """The headers of a request. A password in its URL replaces an earlier one of its origin."""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.passwords[origin] = f"Basic {b64encode(pair.encode()).decode()}"
        self.cookies.add_cookie_header(request)
        own = {"Authorization": self.passwords.get(origin), "Cookie": request.get_header("Cookie")}
        return [(name, value.encode("latin-1")) for name, value in (HEADERS | own).items() if value is not None]

    def remember(self, response: httpcore2.Response, request: CookieRequest) -> None:
        """Keep the cookies of a response."""
        message = Message()
        for name, value in response.headers:
            message[name.decode("latin-1")] = value.decode("latin-1")
        self.cookies.extract_cookies(_CookieResponse(message), request)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _CookieResponse:
    """The part of urllib's response that CookieJar reads."""

    message: Message

    def info(self) -> Message:
        return self.message


def _follow(pool: httpcore2.ConnectionPool, url: str) -> bytes:
    """The content, after any redirects."""
    session = Session()
    for _ in range(1 + MAX_REDIRECTS):
        parts = _split(url)
        host = str(parts.hostname).encode("idna").decode()
        path = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", URL_CHARACTERS, errors=RAW_BYTES)
        target = httpcore2.URL(scheme=parts.scheme, host=host, port=parts.port, target=path)
        origin = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{target.origin.port}"
        request = CookieRequest(f"{origin}{path}")  # noqa: S310  it is never sent
        with pool.stream("GET", target, headers=session.headers(origin, parts, request)) as response:
            session.remember(response, request)
            location = _header(response, b"location")
            if response.status in REDIRECTS and location is not None:
                url = urljoin(url, location.decode(errors=RAW_BYTES))
                continue
            if response.status != 200:
                raise StatusError(str(response.status), f"the server answered {response.status}")
            return _read(response)
    raise Refused(f"it redirects more than {MAX_REDIRECTS} times")


def _split(url: str) -> SplitResult:
    """The parts of a URL. Raises Refused if one of them is malformed."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:  # which may raise ValueError
            return parts
    except ValueError:  # its message would show an unquoted password
        raise Refused("expected http://HOST:PORT/PATH, with %2F for / and so on in names and passwords") from None
    raise Refused(f"expected an address that begins with http:// or https://, got {shown_url(url)}")


def _header(response: httpcore2.Response, wanted: bytes) -> bytes | None:
    return next((value for name, value in response.headers if name.lower() == wanted), None)


def _read(response: httpcore2.Response) -> bytes:
    """The content, decompressed and no larger than MAX_BYTES. Raises Refused."""
    compression = (_header(response, b"content-encoding") or b"identity").decode("latin-1").strip().lower()
    if compression not in COMPRESSIONS | {"identity", ""}:
        raise Refused(f"it comes packed as {excerpt(compression)}, though it was asked for as it is")
    decompressor = zlib.decompressobj(GZIP_OR_ZLIB) if compression in COMPRESSIONS else None
    content = bytearray()
    for chunk in response.iter_stream():
        content += decompressor.decompress(chunk, MAX_BYTES + 1 - len(content)) if decompressor else chunk
        if len(content) > MAX_BYTES:
            raise Refused(f"it is larger than {MAX_BYTES >> 20} MiB")
    if decompressor and not decompressor.eof:
        raise StatusError("", f"its {compression} is cut short")
    return bytes(content)


def _resolve(host: str, port: int, limit: Deadline) -> list[str]:
    """The addresses of a name, each once. Raises TimeoutError if the resolver takes too long."""
    found: SimpleQueue[Any] = SimpleQueue()

    def ask() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as exc:
            found.put(exc)

    Thread(target=ask, name="blipstream-resolve", daemon=True).start()
    try:
        answer = found.get(timeout=limit.left())
    except Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return list(dict.fromkeys(str(address[0]) for *_, address in answer))


class CheckedBackend(httpcore2.NetworkBackend):
    """Connects to public addresses only, and keeps the time limit whatever the other side does."""

    def __init__(self, backend: AbortableBackend, limit: Deadline, *, allow_private: bool) -> None:
        self._backend = backend
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
        """A connection to the host's first address that accepts one. Raises Refused if any is not public."""
        addresses = _resolve(host, port, self._limit)
        for address in addresses:
            if not (self._allow_private or is_public(address)):
                found = address if host == address else f"{excerpt(host)} is {address}, which"
                raise Refused(
                    f"{found} is not a public address; allow_private_urls=True permits it,"
                    " --allow-private-urls on the command line"
                )
        for address in addresses:
            self._limit.check()
            try:
                seconds = min(self._limit.left(), CONNECT_SECONDS)
                stream = self._backend.connect_tcp(address, port, seconds, local_address, socket_options)
                return LimitedStream(stream, self._limit)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                error = exc
        raise error


class LimitedStream(Stream):
    """A connection that keeps the time limit even if the other side is slow."""

    def __init__(self, stream: httpcore2.NetworkStream, limit: Deadline) -> None:
        super().__init__(stream)
        self._limit = limit

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """The next bytes. Raises TimeoutError."""
        return super().read(max_bytes, self._left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send all bytes. Raises TimeoutError."""
        super().write(buffer, self._left())

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        """Encrypt the connection from here on. Raises httpcore2.ConnectTimeout."""
        return super().start_tls(ssl_context, server_hostname, self._limit.left())

    def _left(self) -> float:
        if self._limit.is_over():
            raise TimeoutError
        return self._limit.left()


def is_public(address: str) -> bool:
    """Whether anyone on the internet could reach the address."""
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
