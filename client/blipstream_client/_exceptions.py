# SPDX-License-Identifier: Apache-2.0
"""What the client raises.

* BlipstreamError
  * InvalidURL           the server's address cannot be used
  * InvalidCertificate   a certificate or key file cannot be used
  * InvalidRequest       the server, or the client before sending, refuses what was asked
    * InvalidImage       the image cannot be read or fetched, or is of a kind that cannot be sent
  * AccessDenied         the server wants other credentials
  * RequestCancelled     the client was closed before the answer came
  * RequestTimeout       no answer in time
  * ServerUnreachable    no server answers at the address
  * ServerOverloaded     the server's queue is full: try again later
  * ModelNotReady        the server has no such model, or not yet
  * ServerError          the server failed, or its answer makes no sense
"""

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from urllib.parse import urlsplit

LONGEST_EXCERPT = 60  # characters that a message repeats of what somebody sent, which may be a file
LONGEST_SENTENCE = 300  # of what a server or a library says


def excerpt(text: object, most: int = LONGEST_EXCERPT) -> str:
    """What a message repeats of something that came: one line of it, without its middle if it is long."""
    shown = " ".join(str(text).split())
    return shown if len(shown) <= most else f"{shown[: most * 2 // 3]}...{shown[-(most // 3) :]}"


def quoted(value: object) -> str:
    """The same of a value, as Python would write it."""
    try:
        return excerpt(repr(value))
    except ValueError:  # a whole number of thousands of digits
        return f"a very long {type(value).__name__}"


def shown_url(url: str) -> str:
    """The same of an address, without a name and password."""
    try:
        _ = urlsplit(url).port
        userinfo = r"(?<=://)[^/?#]*@"
    except ValueError:  # such as a password with a slash in it
        userinfo = r"(?<=://).*@"
    return excerpt(re.sub(userinfo, "", url))


class BlipstreamError(Exception):
    """Base of every error of this client; its text is one sentence."""

    transient: bool = False  # whether the same request may succeed later, or at another endpoint
    request_id: str = ""  # as the server's log has it; empty if nothing was sent


class InvalidURL(BlipstreamError):
    """The server's address cannot be used."""


class InvalidCertificate(BlipstreamError):
    """A certificate or key file cannot be used."""


class InvalidRequest(BlipstreamError):
    """The server, or the client before sending, refuses what was asked."""


class InvalidImage(InvalidRequest):
    """The image cannot be read or fetched, or is of a kind that cannot be sent."""


class AccessDenied(BlipstreamError):
    """The server wants other credentials."""


class RequestCancelled(BlipstreamError):
    """The client was closed before the answer came."""


class RequestTimeout(BlipstreamError):
    """No answer in time."""


class ServerUnreachable(BlipstreamError):
    """No server answers at the address."""

    transient = True


class ServerOverloaded(BlipstreamError):
    """The server's queue is full: try again later."""

    transient = True


class ModelNotReady(BlipstreamError):
    """The server has no such model, or not yet; only the latter is transient."""


class ServerError(BlipstreamError):
    """The server failed, or its answer makes no sense."""


# A status that is not listed is a ServerError.
_BY_STATUS: dict[str, type[BlipstreamError]] = {
    "CANCELLED": RequestCancelled,
    "DEADLINE_EXCEEDED": RequestTimeout,
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": ModelNotReady,
    "PERMISSION_DENIED": AccessDenied,
    "RESOURCE_EXHAUSTED": ServerOverloaded,
    "UNAUTHENTICATED": AccessDenied,
    "UNAVAILABLE": ServerUnreachable,
    "400": InvalidRequest,
    "401": AccessDenied,
    "403": AccessDenied,
    "404": ModelNotReady,
    "408": RequestTimeout,
    "413": InvalidRequest,
    "429": ServerOverloaded,
    "499": RequestCancelled,
    "502": ServerUnreachable,
    "503": ServerUnreachable,
    "504": RequestTimeout,
}

# Triton says UNAVAILABLE (503) for these as well, and in a stream 400 or nothing: only its words tell them apart.
_BY_WORDS: dict[str, type[BlipstreamError]] = {
    "Exceeds maximum queue size": ServerOverloaded,
    "requests wait already": ServerOverloaded,
    "Request timeout expired": RequestTimeout,
    "is not at ready state": ModelNotReady,
    "Request for unknown model": ModelNotReady,
    "is restricted, expecting header": AccessDenied,
    "Server is stopping": ServerUnreachable,
    "Stub process": ServerError,
}

# not yet, or not any more: said by a server that starts or stops, or one of whose processes died
_FOR_NOW = ("is not at ready state", "has no available versions", "Stub process")

_TRITON_PREFIXES = re.compile(r"(?:\[request id: [^]]*\]|in ensemble '[^']*',|.*last error: \w+:)\s*")


def error_from_status(status: str, message: str, *, url: str, timeout: float) -> BlipstreamError:
    """The error for a gRPC status ("NOT_FOUND") or an HTTP one ("404"), in one sentence."""
    sentence = excerpt(message, 10 * LONGEST_SENTENCE)  # a proxy's may be a page of any size
    while prefix := _TRITON_PREFIXES.match(sentence):
        sentence = sentence[prefix.end() :]

    by_status = _BY_STATUS.get(status, ServerError)
    kind = next((error for words, error in _BY_WORDS.items() if words in sentence), by_status)
    shown = excerpt(sentence, LONGEST_SENTENCE)
    if kind is ServerUnreachable:
        return unreachable(url, shown or f"status {status}")
    if status == "DEADLINE_EXCEEDED":
        return no_answer(url, timeout)
    error = kind(shown or f"The server at {url} answered {status} without a message")
    error.transient = error.transient or any(words in sentence for words in _FOR_NOW)
    return error


def unreachable(url: str, reason: str) -> ServerUnreachable:
    """The error for a server that cannot be talked to."""
    return ServerUnreachable(
        f"No Triton server answers at {url}: start it, or mend the address ({excerpt(reason, LONGEST_SENTENCE)})"
    )


def broken_off(error: ServerUnreachable) -> ServerUnreachable:
    """The error for a stream that was lost after its first piece, which may be asked for again by who wants it."""
    return ServerUnreachable(f"The stream broke off before its caption was whole: ask again for all of it ({error})")


def no_answer(url: str, timeout: float) -> RequestTimeout:
    """The error for a request that took more than `timeout` seconds."""
    return RequestTimeout(f"No answer from {url} within {timeout:g} s: give it a longer timeout, or less to do")


@contextmanager
def named(request_id: str) -> Iterator[None]:
    """Tell errors whose they are."""
    try:
        yield
    except BlipstreamError as exc:
        exc.request_id = request_id
        raise


def client_closed() -> RequestCancelled:
    """The error for what was asked of a closed client."""
    return RequestCancelled("The client is closed: open another")


def cancelled() -> RequestCancelled:
    """The error for what a client was waiting for when it was closed."""
    return RequestCancelled("The client was closed before the answer came")


# What reading an answer raises that is none; the last is of JSON in a thousand brackets.
STRANGE_ANSWERS = (ValueError, LookupError, TypeError, struct.error, RecursionError)

Translate = Callable[[Exception, str, float], BlipstreamError | None]  # error, url, timeout -> ours


@contextmanager
def translated_errors(translate: Translate, *, url: str, timeout: float, closed: Event) -> Iterator[None]:
    """Turn third-party errors into the client's own, around one exchange with the server.

    `translate` knows the protocol's errors and gives None for strangers. Everything that fails once `closed` is set
    is a RequestCancelled.
    """
    if closed.is_set():
        raise client_closed()
    try:
        yield
    except Exception as exc:
        if closed.is_set():
            raise cancelled() from exc
        if isinstance(exc, BlipstreamError):
            raise
        error = translate(exc, url, timeout)
        if error is None and isinstance(exc, STRANGE_ANSWERS):
            error = ServerError(f"The answer from {url} is not one that Triton gives: {excerpt(exc)}")
        if error is None:
            raise
        raise error from exc
