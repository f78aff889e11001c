# SPDX-License-Identifier: Apache-2.0
"""What the client raises.

* BlipstreamError
  * InvalidURL           the server's address cannot be used
  * InvalidRequest       the server, or the client before sending, refuses what was asked
    * InvalidImage       the image cannot be read or is of a kind that cannot be sent
  * RequestCancelled     the client was closed before the answer came
  * RequestTimeout       no answer in time
  * ServerUnreachable    no server answers at the address
  * ServerOverloaded     the server's queue is full: try again later
  * ModelNotReady        the server has no such model, or not yet
  * ServerError          the server failed, or its answer makes no sense
"""

import http.client
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from tritonclient.utils import InferenceServerException


class BlipstreamError(Exception):
    """Base of every error of this client; its text is one sentence."""


class InvalidURL(BlipstreamError):
    """The server's address cannot be used."""


class InvalidRequest(BlipstreamError):
    """The server, or the client before sending, refuses what was asked."""


class InvalidImage(InvalidRequest):
    """The image cannot be read or is of a kind that cannot be sent."""


class RequestCancelled(BlipstreamError):
    """The client was closed before the answer came."""


class RequestTimeout(BlipstreamError):
    """No answer in time."""


class ServerUnreachable(BlipstreamError):
    """No server answers at the address."""


class ServerOverloaded(BlipstreamError):
    """The server's queue is full: try again later."""


class ModelNotReady(BlipstreamError):
    """The server has no such model, or not yet."""


class ServerError(BlipstreamError):
    """The server failed, or its answer makes no sense."""


# A status that is not listed is a ServerError.
_BY_STATUS: dict[str, type[BlipstreamError]] = {
    "CANCELLED": RequestCancelled,
    "DEADLINE_EXCEEDED": RequestTimeout,
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": ModelNotReady,
    "RESOURCE_EXHAUSTED": ServerOverloaded,
    "UNAVAILABLE": ServerUnreachable,
    "400": InvalidRequest,
    "404": ModelNotReady,
    "408": RequestTimeout,
    "413": InvalidRequest,
    "429": ServerOverloaded,
    "499": RequestCancelled,
    "502": ServerUnreachable,
    "503": ServerUnreachable,
    "504": RequestTimeout,
}

# Triton says UNAVAILABLE (503) for these as well, and only its words tell them apart.
_UNAVAILABLE: dict[str, type[BlipstreamError]] = {
    "Exceeds maximum queue size": ServerOverloaded,
    "Request timeout expired": RequestTimeout,
    "is not at ready state": ModelNotReady,
}

_TRITON_PREFIXES = re.compile(r"(?:\[request id: [^]]*\]|in ensemble '[^']*',|.*last error: \w+:)\s*")


def error_from_status(status: str, message: str, *, url: str, timeout: float) -> BlipstreamError:
    """The error for a gRPC status ("StatusCode.NOT_FOUND") or an HTTP one ("404"), in one sentence."""
    code = status.removeprefix("StatusCode.")
    sentence = " ".join(message.split())
    while prefix := _TRITON_PREFIXES.match(sentence):
        sentence = sentence[prefix.end() :]

    kind = _BY_STATUS.get(code, ServerError)
    if code in ("UNAVAILABLE", "503"):
        kind = next((error for words, error in _UNAVAILABLE.items() if words in sentence), kind)
    if kind is ServerUnreachable:
        return unreachable(url, sentence or f"status {code}")
    if code == "DEADLINE_EXCEEDED":
        return no_answer(url, timeout)
    return kind(sentence or f"The server at {url} answered {code} without a message")


def unreachable(url: str, reason: str) -> ServerUnreachable:
    """The error for a server that cannot be talked to."""
    return ServerUnreachable(f"No Triton server answers at {url}: start it, or mend the address ({reason})")


def no_answer(url: str, timeout: float) -> RequestTimeout:
    """The error for a request that took more than `timeout` seconds."""
    return RequestTimeout(f"No answer from {url} within {timeout:g} s: give it a longer timeout, or less to do")


def translate(exc: Exception, *, url: str, timeout: float) -> BlipstreamError | None:
    """The client's own error for one from tritonclient, the sockets or the parsing; None for a stranger."""
    match exc:
        case InferenceServerException():
            return error_from_status(exc.status() or "", exc.message() or "", url=url, timeout=timeout)
        case TimeoutError():
            return no_answer(url, timeout)
        case OSError():
            return unreachable(url, exc.strerror or str(exc))
        case http.client.HTTPException():
            return unreachable(url, f"what answers there does not speak HTTP: {exc!r}")
        case ValueError() | LookupError() | TypeError() | struct.error():
            return ServerError(f"The answer from {url} is not one that Triton gives: {exc}")
        case _:
            return None


@contextmanager
def translated_errors(*, url: str, timeout: float, closed: Event) -> Iterator[None]:
    """Turn third-party errors into the client's own, around one exchange with the server.

    Everything that fails once `closed` is set is a RequestCancelled.
    """
    try:
        if closed.is_set():
            raise RequestCancelled("The client is closed: open another")
        yield
    except BlipstreamError:
        raise
    except Exception as exc:
        if closed.is_set():
            raise RequestCancelled("The client was closed before the answer came") from exc
        error = translate(exc, url=url, timeout=timeout)
        if error is None:
            raise
        raise error from exc
