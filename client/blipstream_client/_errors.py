# SPDX-License-Identifier: Apache-2.0
"""How statuses, messages and other libraries' exceptions become exceptions of the client.

An error of Blipstream's server has a code in its text, as in `[invalid_input] num_beams must be ...`: the code decides.
Triton's own errors have none, nor have a proxy's or an older server's: there, Triton's messages and then the status do.
"""

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from urllib.parse import unquote

from blipstream_client._exceptions import (
    AccessDenied,
    BlipstreamError,
    InvalidImage,
    InvalidRequest,
    InvalidURL,
    ModelNotReady,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)
from blipstream_client._text import LONGEST_SENTENCE, excerpt, shown_url
from blipstream_client._triton_messages import Meaning, meaning, without_prefixes

# The codes of blipstream/errors.py. tests/client/test_errors.py holds the two to each other.
_BY_CODE = {
    "artifact_error": Meaning(ServerError, False),
    "backend_died": Meaning(ServerError, True),
    "cancelled": Meaning(RequestCancelled, False),
    "internal": Meaning(ServerError, False),
    "invalid_image": Meaning(InvalidImage, False),
    "invalid_input": Meaning(InvalidRequest, False),
    "overloaded": Meaning(ServerOverloaded, True),
    "server_error": Meaning(ServerError, False),
    "stopping": Meaning(ServerUnreachable, True),
    "timeout": Meaning(RequestTimeout, False),
}

# gRPC's and HTTP's. Any other is a ServerError.
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
    "405": ServerUnreachable,  # the port for metrics
    "408": RequestTimeout,
    "413": InvalidRequest,
    "429": ServerOverloaded,
    "499": RequestCancelled,
    "502": ServerUnreachable,
    "503": ServerUnreachable,
    "504": RequestTimeout,
}

# Without a message, these are not Triton's: nginx answers 400 to HTTP without TLS, and the health port has no such page
# or method.
NOT_TRITONS = {"400", "404", "501"}
NO_PAGE = "Not Found"  # Triton's message with 404 for a path that is none of its own

OF_OUR_PROXY = "try again later"  # gRPC has one status where nothing answers and where our proxy finds no server

_ENCODED = re.compile(r"ipv6:%5B\S*%5D")  # gRPC's form of an address
_NOISE = re.compile(r"Failed to connect to remote host: |^\[Errno \d+\] ")

_CODED = re.compile(r"\[([a-z_]+)\] (.*)")
JSON_ALONE = ", in JSON as base64"  # a remedy of the server's for those who write requests themselves

# What reading a response raises if it is none of Triton's. RecursionError: JSON in a thousand brackets.
STRANGE_RESPONSES = (ValueError, LookupError, TypeError, struct.error, RecursionError)

Translate = Callable[[Exception, str, float], BlipstreamError | None]  # exception, url, timeout in seconds


class StatusError(Exception):
    """A response that is an error. `status` is gRPC's or HTTP's, or "" if there is none."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def error_from_status(status: str, text: str, *, url: str, timeout: float) -> BlipstreamError:
    """The exception for an error response.

    `status` is gRPC's ("NOT_FOUND") or HTTP's ("404"), or "" if there is none. `text` may be long: a proxy's is a page.
    """
    code, message = _split_code(without_prefixes(excerpt(text, 10 * LONGEST_SENTENCE)))
    kind, transient = (
        _BY_CODE.get(code)
        or (meaning(message) if not code else None)
        or Meaning(_BY_STATUS.get(status, ServerError), False)
    )
    shown = excerpt(message, LONGEST_SENTENCE)
    if status == "404" and shown == NO_PAGE:
        return InvalidURL(
            f"No Triton answers at {url.rstrip('/')}/v2 (404 Not Found): mend the address, which has a path only"
            " behind a proxy"
        )
    if status in NOT_TRITONS and not shown:
        kind = ServerUnreachable
    if kind is ServerUnreachable and shown.endswith(OF_OUR_PROXY):
        error: BlipstreamError = ServerUnreachable(f"{url} answered {status}: {shown}")
    elif kind is ServerUnreachable:
        error = unreachable(url, shown or f"status {status}")
    elif status == "DEADLINE_EXCEEDED":
        error = no_response(url, timeout)
    elif kind is AccessDenied and not shown:
        error = AccessDenied(f"The server at {url} wants a valid key (status {status}): set BLIPSTREAM_API_KEY")
    elif kind is ModelNotReady and not transient and "unknown model" in shown:
        error = ModelNotReady(f"{shown}: `blipstream info` names those that the server has")
    else:
        error = kind(shown or f"The server at {url} answered {status} without a message")
    error.code = code or error.code
    error.transient = error.transient or transient
    return error


def _split_code(text: str) -> tuple[str, str]:
    """The code, or "" if there is none, and the message without the remedy that is for others."""
    coded = _CODED.fullmatch(text)
    return (coded[1], coded[2].removesuffix(JSON_ALONE)) if coded else ("", text)


def unreachable(url: str, reason: str) -> ServerUnreachable:
    """The error for a server that does not respond at all."""
    return ServerUnreachable(f"No Triton server answers at {url}: start it, or mend the address ({_plain(reason)})")


def _plain(reason: str) -> str:
    """Another library's reason, with addresses as people write them."""
    shown = _NOISE.sub("", _ENCODED.sub(lambda address: unquote(address[0]), reason))
    return excerpt(shown, LONGEST_SENTENCE)


def broken_off(error: ServerUnreachable) -> ServerUnreachable:
    """The error for a stream that was lost after its first piece."""
    return ServerUnreachable(f"The stream broke off before its caption was whole: ask again for all of it ({error})")


def no_response(url: str, timeout: float) -> RequestTimeout:
    """The error for a request that took more than `timeout` seconds."""
    return RequestTimeout(f"No answer from {url} within {timeout:g} s: give it a longer timeout, or less to do")


def model_missing(error: ModelNotReady, model: str, served: Sequence[str]) -> ModelNotReady:
    """The error for a model that the server does not have, given those that it has."""
    if not served or model in served:  # it is there now
        return error
    missing = ModelNotReady(f"This server has no {excerpt(model)}; it has {', '.join(served)}")
    missing.code = error.code
    return missing


def client_closed() -> RequestCancelled:
    """The error for a request to a closed client."""
    return RequestCancelled("The client is closed: open another")


def cancelled() -> RequestCancelled:
    """The error for a request in flight when the client was closed."""
    return RequestCancelled("The client was closed before the answer came")


def without_frames(error: BlipstreamError) -> BlipstreamError:
    """The same error without its tracebacks, whose frames would keep the image in memory as long as the error."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


@contextmanager
def about(image: object, number: int | None = None) -> Iterator[None]:
    """Errors raised inside get the image's name. `number` is its place among many."""
    try:
        yield
    except BlipstreamError as exc:
        named = isinstance(image, str | os.PathLike)
        shown = shown_url(str(image)) if named else type(image).__name__
        exc.image = shown if number is None else f"{shown}, number {number:,}"
        raise


@contextmanager
def with_request_id(request_id: str) -> Iterator[None]:
    """Errors raised inside get the request's id."""
    try:
        yield
    except BlipstreamError as exc:
        exc.request_id = request_id
        raise


@contextmanager
def translated_errors(translate: Translate, *, url: str, timeout: float, closed: Event) -> Iterator[None]:
    """Turn other libraries' exceptions into the client's own, around one exchange with the server.

    `translate` knows the exceptions of one protocol and returns None for any other. Once `closed` is set, any exception
    becomes a RequestCancelled.
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
        if error is None and isinstance(exc, STRANGE_RESPONSES):
            error = ServerError(
                f"The answer from {url} is not one that Triton gives ({excerpt(exc)}): check the address"
            )
        if error is None:
            raise
        raise error from exc
