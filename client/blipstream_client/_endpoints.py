# SPDX-License-Identifier: Apache-2.0
"""The addresses of servers, and which of several gets the next request."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from threading import Lock
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from blipstream_client._exceptions import (
    BlipstreamError,
    InvalidURL,
    ModelNotReady,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerUnreachable,
)
from blipstream_client._text import LONGEST_SENTENCE, excerpt, shown_url

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 443, "http": 8000, "https": 443}
LAST_PORT = 65535
NEXT_SCHEME = re.compile(r",\s*\w+://")
HOST = re.compile(r"(\[.*\]|[^:]*):?")  # before the port
FIRST_REST = 1.0  # seconds without requests for an endpoint that failed, and twice as many each time it fails again
LONGEST_REST = 30.0


class Address(NamedTuple):
    """The address of a server."""

    url: str  # for messages
    scheme: str  # a key of DEFAULT_PORTS
    host: str
    port: int
    path: str  # prefix before /v2, for HTTP behind a proxy

    @property
    def netloc(self) -> str:
        """HOST:PORT. An IPv6 address has brackets around it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def secure(self) -> bool:
        """Whether the server speaks TLS."""
        return self.scheme.endswith("s")

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, which is never reached through a proxy."""
        with suppress(ValueError):  # a name
            return ip_address(self.host).is_loopback
        return self.host == "localhost" or self.host.endswith(".localhost")


def parse_urls(url: str) -> list[Address]:
    """The addresses in SCHEME://HOST[:PORT][,HOST[:PORT]...][/PATH]. Raises InvalidURL."""
    url = url.strip()
    if NEXT_SCHEME.search(url):
        raise InvalidURL(
            "Expected one scheme, once, before all addresses, such as grpc://a:8001,b:8001, got"
            f" {shown_url(url)!r}: write the scheme only at the beginning"
        )
    scheme, separator, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    hosts = netloc.split(",")
    if len(hosts) == 1:
        return [_parse_url(url)]
    return [_parse_url(f"{scheme}{separator}{host.strip()}{slash}{path}") for host in hosts]


def _parse_url(url: str) -> Address:
    try:
        parts = urlsplit(url)
        scheme, host, named = parts.scheme, parts.hostname, parts.username is not None
        port = parts.port if "@" in url else _port(parts)  # what looks like a port may be of a password
    except ValueError:  # such as a bracket without its other half
        scheme, host, port, named = "", None, None, False
    if named:
        raise InvalidURL(
            f"Expected an address without a name and password, got one for {shown_url(url)}: send them as a header,"
            " such as authorization: Basic ..."
        )
    path = parts.path.rstrip("/") if scheme else ""
    if scheme not in DEFAULT_PORTS or not host or (path and not scheme.startswith("http")):
        raise InvalidURL(
            "Expected an address such as grpc://localhost:8001 or http://localhost:8000, or several such as"
            f" grpc://a:8001,b:8001, got {shown_url(url)!r}; the schemes are {', '.join(DEFAULT_PORTS)}"
        )
    return Address(excerpt(url, LONGEST_SENTENCE), scheme, host, port or DEFAULT_PORTS[scheme], path)


def _port(parts: SplitResult) -> int | None:
    """The port. None if the address leaves it out. Raises InvalidURL, or ValueError if what is there is no port."""
    given = HOST.sub("", parts.netloc, count=1)
    if not given or ":" in given:  # as in an IPv6 address without brackets
        return parts.port
    if not (given.isascii() and given.isdigit() and 0 < int(given[:6]) <= LAST_PORT):
        raise InvalidURL(
            f"Expected a port from 1 to {LAST_PORT} in the address {shown_url(parts.geturl())}, got {excerpt(given)}"
        )
    return int(given)


class RoundRobin:
    """Endpoints in turn, except those that failed a while ago, which rest. Any number of threads may share one."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.have_responded = False  # whether any endpoint has ever been well
        self._clock = clock
        self._lock = Lock()
        self._is_told = False
        self._next = 0
        self._failures = [0] * count  # in a row
        self._resting_until = [0.0] * count

    @contextmanager
    def turn(self) -> Iterator[int]:
        """The index of the endpoint to send to. The block's success or exception decides whether it rests."""
        index, failures = self._take()
        try:
            yield index
        except BlipstreamError as exc:
            if is_endpoint_failure(exc):
                self._note_failure(index, failures)
            elif not isinstance(exc, RequestCancelled):
                self._note_success(index)
            raise
        self._note_success(index)

    def is_any_rested(self) -> bool:
        """Whether an endpoint can be asked at once."""
        with self._lock:
            now = self._clock()
            return any(until <= now for until in self._resting_until)

    def is_news(self) -> bool:
        """Whether this outage, which ends with the next success, is asked about for the first time."""
        with self._lock:
            was_told, self._is_told = self._is_told, True
            return not was_told

    def _take(self) -> tuple[int, int]:
        with self._lock:
            now = self._clock()
            count = len(self._failures)
            order = [(self._next + step) % count for step in range(count)]
            # if all rest: the one whose rest ends first
            index = next(
                (each for each in order if self._resting_until[each] <= now),
                min(order, key=self._resting_until.__getitem__),
            )
            if self._failures[index]:
                self._rest(index, now)  # for all other requests, until this one has tried it
            self._next = index + 1
            return index, self._failures[index]

    def _note_failure(self, index: int, failures_before: int) -> None:
        with self._lock:
            if self._failures[index] == failures_before:  # else another request has met the same failure
                self._failures[index] += 1
                self._rest(index, self._clock())

    def _note_success(self, index: int) -> None:
        with self._lock:
            self.have_responded = True
            self._is_told = False
            self._failures[index] = 0
            self._resting_until[index] = 0.0

    def _rest(self, index: int, now: float) -> None:
        doublings = min(self._failures[index] - 1, 10)
        self._resting_until[index] = now + min(FIRST_REST * 2**doublings, LONGEST_REST)


def is_endpoint_failure(error: object) -> bool:
    """Whether the endpoint is at fault. Any other error is about the request, and the endpoint is well."""
    match error:
        case ServerUnreachable() | RequestTimeout():
            return True
        case ModelNotReady() | ServerError():
            return error.transient
        case _:
            return False
