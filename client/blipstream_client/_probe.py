# SPDX-License-Identifier: Apache-2.0
"""What answers at an address where no Triton server does: another protocol, another port of the server's, or one with a
certificate that is not trusted.

gRPC and HTTP clients see only that the other side hangs up, and of a name with several addresses, they report the last
one, which may be at fault for another reason.
"""

import re
import socket
import ssl
import time
from contextlib import suppress
from threading import Lock

from blipstream_client._endpoints import DEFAULT_PORTS, Address
from blipstream_client._exceptions import ServerUnreachable
from blipstream_client._text import excerpt
from blipstream_client._tls import TLS

SECONDS = 1.0  # for each step: a probe has at most five
FRESH_SECONDS = 1.0  # how long a finding counts: many requests may fail together
NAMES = {"grpc": "gRPC", "grpcs": "gRPC with TLS", "http": "HTTP", "https": "HTTPS"}  # of schemes
H2, HTTP_1 = "h2", "http/1.1"  # what a TLS client can offer to speak (ALPN); gRPC is always h2
SETTINGS = 4  # the type of the frame that an HTTP/2 server sends first, in byte 3
SIDE_DOORS = {
    b"\nnv_": "metrics",
    b"\nblipstream_supervisor": "health",
}  # ports of a server, by what their /metrics has
MOST_METRICS = 1 << 16  # bytes of a page of metrics that are looked at
MISMATCHES = {62, 64}  # OpenSSL's codes for a certificate of another host name or address
ALERT = re.compile(
    r" alert ([a-z ]+\w)"
)  # OpenSSL's words for why the other side broke off; Python knows not all codes
REFUSED_OFFER = "no application protocol"
EXPIRED = {9, 10}  # not yet valid, or not any more


class Probe:
    """Asks at one address. Any number of threads may share one."""

    def __init__(self, address: Address, tls: TLS) -> None:
        self._address = address
        self._tls = tls
        self._lock = Lock()
        self._fault: str | None = None
        self._found_at = -FRESH_SECONDS

    def error(self, failure: ServerUnreachable) -> ServerUnreachable:
        """A better error for a failed request, or the same if nothing was found out. It may take a few seconds."""
        with self._lock:
            if time.monotonic() - self._found_at >= FRESH_SECONDS:
                self._fault = find_fault(self._address, self._tls)
                self._found_at = time.monotonic()
            return ServerUnreachable(self._fault) if self._fault else failure


def find_fault(address: Address, tls: TLS) -> str | None:
    """What is wrong with the address, and how to mend it. None if nothing is, or nothing answers."""
    with suppress(OSError, ValueError):
        try:
            found = _scheme(address, tls)
        except ssl.SSLError as exc:
            return (
                f"What answers at {address.url} breaks off the TLS handshake ({_alert(exc)}):"
                " its certificate and key may not belong together, or it wants a certificate of yours (--cert-file)"
            )
        if found == "http" and (door := _side_door(address)):
            plain = address.scheme.removesuffix("s")
            return (
                f"Expected {NAMES[address.scheme]} at {address.url}, and that is the server's {door} port:"
                f" {NAMES[plain]} is usually at port {DEFAULT_PORTS[plain]}"
            )
        if found == address.scheme:
            return _distrust(address, tls) if address.secure else None
        if found:
            path = address.path if found.startswith("http") else ""
            return (
                f"Expected {NAMES[address.scheme]} at {address.url}, and {NAMES[found]} answers there:"
                f" use {excerpt(f'{found}://{address.netloc}{path}')}"
            )
    return None


def _scheme(address: Address, tls: TLS) -> str:
    """The scheme of what answers, or "" if it is unknown.

    Raises ssl.SSLError if it speaks TLS and breaks off the handshake, and OSError if nothing answers.
    """
    _connected(address).close()  # so that an OSError from here on is the other side's answer
    try:
        speaks_h2 = _negotiated(address, tls, H2) == H2
    except OSError as exc:
        if isinstance(exc, ssl.SSLError) and _alert(exc):
            raise
        # it does not speak TLS: it hangs up, answers otherwise, or waits for the end of a line
        return _plain_scheme(address)
    is_grpc = speaks_h2 and (address.scheme.startswith("grpc") or _negotiated(address, tls, HTTP_1) != HTTP_1)
    return "grpcs" if is_grpc else "https"


def _plain_scheme(address: Address) -> str:
    answer = _get(address, "/v2", 9)
    if answer.startswith(b"HTTP/"):
        return "http"
    return "grpc" if len(answer) == 9 and answer[3] == SETTINGS else ""


def _side_door(address: Address) -> str | None:
    """Which port for operators answers over HTTP. None if none does."""
    page = _get(address, "/metrics", MOST_METRICS)
    return next((name for line, name in SIDE_DOORS.items() if line in page), None)


def _get(address: Address, path: str, most: int) -> bytes:
    """The first bytes of what answers to a request in HTTP without TLS."""
    answer, end = b"", time.monotonic() + SECONDS
    with _connected(address) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
        while len(answer) < most and time.monotonic() < end and (piece := connection.recv(most - len(answer))):
            answer += piece
    return answer


def _negotiated(address: Address, tls: TLS, offer: str) -> str | None:
    """What a TLS server chooses to speak, whatever its certificate. None if it does not say, or refuses the offer."""
    context = tls.new_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([offer])
    try:
        with _connected(address) as connection, context.wrap_socket(connection, server_hostname=address.host) as secure:
            return secure.selected_alpn_protocol()
    except ssl.SSLError as exc:
        if _alert(exc) == REFUSED_OFFER:
            return None
        raise


def _alert(error: ssl.SSLError) -> str:
    """Why the other side broke off the handshake. "" if it did not."""
    found = ALERT.search(str(error))
    return found[1] if found else ""


def _distrust(address: Address, tls: TLS) -> str | None:
    """Why the server's certificate is not trusted. None if it is."""
    try:
        with _connected(address) as connection:
            tls.context.wrap_socket(connection, server_hostname=address.host).close()
    except ssl.SSLCertVerificationError as exc:
        if exc.verify_code in MISMATCHES:
            remedy = "use a name that is in it"
        elif exc.verify_code in EXPIRED:
            remedy = "have it renewed"
        else:
            remedy = "give its authority's certificate as ca_file (--ca-file)"
        return f"The certificate at {address.url} is not trusted ({exc.verify_message.rstrip('.')}): {remedy}"
    return None


def _connected(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), SECONDS)
