# SPDX-License-Identifier: Apache-2.0
"""Image URLs -> bytes, fetched by the client and never by the server.

A URL that came from a stranger must not reach what only this machine can reach. So each name is resolved here, every
one of its addresses must be public, and the connection goes to an address that was checked; redirects pass the same
gate. The caller's headers for the Triton server are not sent, and what is secret in a URL goes to its host alone.

Larger libraries of HTTP clients do not do: none takes a check of its own for each address, nor a time limit for all of
a fetch, nor bounds what comes out of gzip.
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
from urllib.request import Request

import httpcore2

from blipstream_client._exceptions import LONGEST_SENTENCE, InvalidImage, excerpt, shown_url
from blipstream_client._files import MAX_BYTES
from blipstream_client._streams import CuttableBackend, Stream
from blipstream_client._transport import CONNECT_SECONDS, Deadline, StatusError

MAX_REDIRECTS = 5
MAX_SECONDS = 20.0  # for all of it, with retries
REDIRECTS = {301, 302, 303, 307, 308}
FOR_NOW = {"408", "429", "500", "502", "503", "504"}  # statuses that may be others soon
HEADERS = {
    "Accept": "image/*, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": "blipstream-client",
}
UNPACKED = {"gzip", "x-gzip", "deflate"}  # what some servers send though it was not asked for
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # told apart by their first bytes
URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"  # that need no quoting
RAW_BYTES = "surrogateescape"  # redirects may hold any bytes, which are to be quoted as they are
NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 addresses in IPv6 ones
TIMEOUTS = (httpcore2.TimeoutException, TimeoutError)
FAILURES = (*TIMEOUTS, httpcore2.NetworkError, httpcore2.ProtocolError, OSError, ValueError, StatusError, zlib.error)


class Refused(Exception):
    """What the URL asks for is not allowed."""


def is_url(image: object) -> bool:
    """Whether what the caller calls an image is to be fetched."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def fetch(url: str, limit: Deadline, *, allow_private: bool = False, backend: CuttableBackend | None = None) -> bytes:
    """The bytes at a URL; cutting the backend ends it. Raises InvalidImage, transient if they may be had later."""
    try:
        checked = CheckedBackend(backend or CuttableBackend(), limit, allow_private=allow_private)
        with httpcore2.ConnectionPool(network_backend=checked) as pool:
            return _follow(pool, url)
    except Refused as exc:
        raise InvalidImage(f"Refused to fetch {shown_url(url)}: {exc}") from exc
    except FAILURES as exc:
        slow = isinstance(exc, TIMEOUTS)
        reason = (
            f"it took more than {limit.seconds:.3g} s" if slow else excerpt(exc, LONGEST_SENTENCE) or type(exc).__name__
        )
        error = InvalidImage(f"Cannot fetch {shown_url(url)}: {reason}")
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
            return not isinstance(error, (httpcore2.LocalProtocolError, ValueError, zlib.error))


@dataclass(frozen=True)
class Visit:
    """What is told to hosts on the way: to each what is its own, and no longer than one fetch."""

    cookies: CookieJar = field(default_factory=CookieJar)
    passwords: dict[str, str] = field(default_factory=dict)  # headers, by origin

    def headers(self, origin: str, parts: SplitResult, asked: Request) -> list[tuple[bytes | str, bytes | str]]:
        """For a request; a URL's own password replaces an earlier one of its origin."""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.passwords[origin] = f"Basic {b64encode(pair.encode()).decode()}"
        self.cookies.add_cookie_header(asked)
        own = {"Authorization": self.passwords.get(origin), "Cookie": asked.get_header("Cookie")}
        return [(name, value.encode("latin-1")) for name, value in (HEADERS | own).items() if value is not None]

    def remember(self, response: httpcore2.Response, asked: Request) -> None:
        """The cookies in an answer."""
        message = Message()
        for name, value in response.headers:
            message[name.decode("latin-1")] = value.decode("latin-1")
        self.cookies.extract_cookies(_Answered(message), asked)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Answered:
    """As much of urllib's response as a jar of cookies looks at."""

    message: Message

    def info(self) -> Message:
        return self.message


def _follow(pool: httpcore2.ConnectionPool, url: str) -> bytes:
    """What is at the end of the redirects."""
    visit = Visit()
    for _ in range(1 + MAX_REDIRECTS):
        parts = _split(url)
        host = str(parts.hostname).encode("idna").decode()
        path = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", URL_CHARACTERS, errors=RAW_BYTES)
        target = httpcore2.URL(scheme=parts.scheme, host=host, port=parts.port, target=path)
        origin = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{target.origin.port}"
        asked = Request(f"{origin}{path}")  # noqa: S310  for its cookies alone
        with pool.stream("GET", target, headers=visit.headers(origin, parts, asked)) as response:
            visit.remember(response, asked)
            location = _header(response, b"location")
            if response.status in REDIRECTS and location is not None:
                url = urljoin(url, location.decode(errors=RAW_BYTES))
                continue
            if response.status != 200:
                raise StatusError(str(response.status), f"the server answered {response.status}")
            return _read(response)
    raise Refused(f"it redirects more than {MAX_REDIRECTS} times")


def _split(url: str) -> SplitResult:
    """The parts of a URL, all of which can be read. Raises Refused."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:  # which raises where it is none
            return parts
    except ValueError:  # whose words would repeat a password that is not quoted
        raise Refused("expected http://HOST:PORT/PATH, with %2F for / and so on in names and passwords") from None
    raise Refused(f"expected an address that begins with http:// or https://, got {shown_url(url)}")


def _header(response: httpcore2.Response, wanted: bytes) -> bytes | None:
    return next((value for name, value in response.headers if name.lower() == wanted), None)


def _read(response: httpcore2.Response) -> bytes:
    """What came, unpacked and bounded. Raises Refused."""
    packed = (_header(response, b"content-encoding") or b"identity").decode("latin-1").strip().lower()
    if packed not in UNPACKED | {"identity", ""}:
        raise Refused(f"it comes packed as {excerpt(packed)}, though it was asked for as it is")
    unpacker = zlib.decompressobj(GZIP_OR_ZLIB) if packed in UNPACKED else None
    content = bytearray()
    for chunk in response.iter_stream():
        content += unpacker.decompress(chunk, MAX_BYTES + 1 - len(content)) if unpacker else chunk
        if len(content) > MAX_BYTES:
            raise Refused(f"it is larger than {MAX_BYTES >> 20} MiB")
    if unpacker and not unpacker.eof:
        raise StatusError("", f"its {packed} is cut short")
    return bytes(content)


def _resolve(host: str, port: int, limit: Deadline) -> list[str]:
    """The addresses of a name, each once. Raises TimeoutError, since a resolver may take longer than there is time."""
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
    """Connects to public addresses only, and ends in time whatever the other side does."""

    def __init__(self, backend: CuttableBackend, limit: Deadline, *, allow_private: bool) -> None:
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
        """A connection to the first of the host's addresses that answers. Raises Refused if one is not public."""
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
