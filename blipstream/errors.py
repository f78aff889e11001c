# SPDX-License-Identifier: Apache-2.0
"""The errors of Blipstream's server, in one tree.

BlipstreamError
├── InvalidInput    the request is at fault, and its sender can correct it
│   └── InvalidImage   its image cannot be decoded, or costs too much
├── Overloaded      too many requests wait: try again later
│   └── Stopping    the server is shutting down: ask another one
├── TimedOut        the request's time is up
├── Gone            the client has hung up or cancelled the request
├── BackendDied     the process of a model has died: the supervisor restarts the server
├── ArtifactError   a checkpoint or a built artifact is missing, broken or of the wrong kind
└── ServerError     the embedded server could not start, or has died

Each message is one sentence: what was expected, what came, how to correct it.

Each class has a `code`, which clients can rely on while messages may change. Triton gives an error a status and a text
and nothing else, and its ensembles and model-to-model calls lose the status. So the code is part of the text:

    [invalid_input] num_beams must be between 1 and 10, not 99

`format_error` writes this form and `parse_error` reads it.
"""

import re
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

FAILED = "the server failed at this request"
TIMED_OUT = "Request timeout expired"  # Triton's own message


class BlipstreamError(Exception):
    """Base of all errors that Blipstream raises on purpose. As it is, it means that the server failed."""

    code = "internal"
    status = "INTERNAL"  # an attribute of pb_utils.TritonError


class InvalidInput(BlipstreamError):
    """The request is at fault, and its sender can correct it."""

    code = "invalid_input"
    status = "INVALID_ARG"


class InvalidImage(InvalidInput):
    """The request's image cannot be decoded, or costs too much."""

    code = "invalid_image"


class Overloaded(BlipstreamError):
    """Too many requests wait: try again later."""

    code = "overloaded"
    status = "UNAVAILABLE"


class Stopping(Overloaded):
    """The server is shutting down: ask another one."""

    code = "stopping"


class TimedOut(BlipstreamError):
    """The request's time is up."""

    code = "timeout"
    status = "UNAVAILABLE"


class Gone(BlipstreamError):
    """The client has hung up or cancelled the request."""

    code = "cancelled"
    status = "CANCELLED"

    def __init__(self, message: str = "the client has gone") -> None:
        super().__init__(message)


class BackendDied(BlipstreamError):
    """The process of a model has died: the supervisor restarts the server."""

    code = "backend_died"


class ArtifactError(BlipstreamError):
    """A checkpoint or a built artifact is missing, broken or of the wrong kind."""

    code = "artifact_error"


class ServerError(BlipstreamError):
    """The embedded server could not start, or has died."""

    code = "server_error"


ErrorT = TypeVar("ErrorT", bound=BlipstreamError)

# Triton 2.51's own messages when one model calls another. It calls all of them INTERNAL, so only the text tells them
# apart. tests/client/test_triton_messages.py holds them to the real server.
TRITON_MESSAGES: dict[str, type[BlipstreamError]] = {
    "Exceeds maximum queue size": Overloaded,
    "Server not ready": Stopping,
    TIMED_OUT: TimedOut,
    "Stub process": BackendDied,
}

_CODED = re.compile(r"(?:\[request id: [^]]*\] *|in ensemble '[^']*', *)*\[([a-z_]+)\] (.*)", re.DOTALL)


def format_error(error: BlipstreamError) -> str:
    """The text of an error on its way to a client or another model: `[code] message`."""
    return f"[{error.code}] {error}"


def parse_error(text: str) -> BlipstreamError:
    """The error that another model answered with. Text without a code comes from Triton itself."""
    coded = _CODED.match(text)
    if coded and (kind := _BY_CODE.get(coded[1])):
        return kind(coded[2])
    kind = next((kind for words, kind in TRITON_MESSAGES.items() if words in text), BlipstreamError)
    return kind(text)


def triton_error(kind: Any, error: BlipstreamError) -> Any:  # noqa: ANN401
    """The error as an instance of `kind`, which is Triton's pb_utils.TritonError."""
    return kind(format_error(error), getattr(kind, error.status))


def without_frames(error: ErrorT) -> ErrorT:
    """A copy of the error without its traceback, to be kept or passed on.

    A traceback holds the frames of all callers, with their tensors. If one of those frames held the error in turn, both
    would stay in memory until a full garbage collection.
    """
    return type(error)(*error.args)


def report(error: Exception) -> BlipstreamError:
    """The error to answer a request with. One that nobody raised on purpose is printed to the log in full."""
    if isinstance(error, BlipstreamError):
        return without_frames(error)
    with suppress(OSError):  # the disk may be full
        traceback.print_exception(error)
    return BlipstreamError(f"{FAILED} ({type(error).__name__}): try again, or see its log")


def _family(kind: type[BlipstreamError]) -> list[type[BlipstreamError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _family(child))]


_BY_CODE = {kind.code: kind for kind in _family(BlipstreamError)}


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def apart(
    function: Callable[[Sequence[ItemT]], Sequence[ResultT]], items: Sequence[ItemT]
) -> list[ResultT | BlipstreamError]:
    """A result for each item, from a function of many items at once.

    If the function fails, each half is tried on its own, and so on. So the result of an item is an error only if the
    function fails at that item alone.
    """
    try:
        return list(function(items)) if items else []
    except Exception as exc:
        error = report(exc)
    if len(items) == 1:
        return [error]
    half = len(items) // 2
    return apart(function, items[:half]) + apart(function, items[half:])
