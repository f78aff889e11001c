# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one tree.

BlipstreamError
├── InvalidInput    a request is at fault: its sender can mend it
├── Overloaded      more requests wait than are worth waiting for: try again later
├── TimedOut        a request's time is up
├── Gone            nobody waits for a request's answer any more
├── ArtifactError   a checkpoint or a built artifact is missing, broken or of the wrong kind
└── ServerError     the embedded server could not start, or died

Each message is one sentence: what was expected, what came, how to mend it.
"""

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

FAILED = "the server failed at this request"
TIMED_OUT = "Request timeout expired"  # in Triton's words, by which clients know it


class BlipstreamError(Exception):
    """Base of all errors that Blipstream raises on purpose."""

    status = "INTERNAL"  # what Triton calls its kind


class InvalidInput(BlipstreamError):
    """A request is at fault: its sender can mend it."""

    status = "INVALID_ARG"


class Overloaded(BlipstreamError):
    """More requests wait than are worth waiting for: try again later."""

    status = "UNAVAILABLE"


class TimedOut(BlipstreamError):
    """A request's time is up."""

    status = "UNAVAILABLE"


class Gone(BlipstreamError):
    """Nobody waits for a request's answer any more."""

    status = "CANCELLED"

    def __init__(self, message: str = "the client has gone") -> None:
        super().__init__(message)


class ArtifactError(BlipstreamError):
    """A checkpoint or a built artifact is missing, broken or of the wrong kind."""


class ServerError(BlipstreamError):
    """The embedded server could not start, or died."""


ErrorT = TypeVar("ErrorT", bound=BlipstreamError)


def error_of(model: str, message: str) -> BlipstreamError:
    """What another model refused with: Triton 2.51 calls all of it INTERNAL, so its words must tell what it was."""
    if "Exceeds maximum queue size" in message or "requests wait already" in message:
        return Overloaded(message)
    if "Server not ready" in message:
        return Overloaded(f"{message}: it is stopping, so ask another one")
    if TIMED_OUT in message:
        return TimedOut(message)
    failed = any(words in message for words in (FAILED, "Stub process", "Failed to process"))
    return InvalidInput(message) if model == "preprocess" and not failed else BlipstreamError(message)


def without_frames(error: ErrorT) -> ErrorT:
    """The same error anew, to be kept: its traceback holds the frames of all who called, with what they work on.

    If one of them kept the error, both would hold each other until a full garbage collection.
    """
    return type(error)(*error.args)


def triton_error(kind: Any, error: BlipstreamError) -> Any:  # noqa: ANN401
    """The same error as one of Triton's: `kind` is its pb_utils.TritonError."""
    return kind(str(error), getattr(kind, error.status))


def report(error: Exception) -> BlipstreamError:
    """What a request's sender is told of an error: of one that nobody raised on purpose, the log alone has it all."""
    if isinstance(error, BlipstreamError):
        return without_frames(error)
    with suppress(OSError):  # the disk may be full
        traceback.print_exception(error)
    return BlipstreamError(f"{FAILED} ({type(error).__name__}): try again, or see its log")


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def apart(
    function: Callable[[Sequence[ItemT]], Sequence[ResultT]], items: Sequence[ItemT]
) -> list[ResultT | BlipstreamError]:
    """What a function makes of items, a result for each: of all at once, or where that fails, of one half at a time.

    So an item has an error for a result only if the function fails at that item alone.
    """
    try:
        return list(function(items)) if items else []
    except Exception as exc:
        error = report(exc)
    if len(items) == 1:
        return [error]
    half = len(items) // 2
    return apart(function, items[:half]) + apart(function, items[half:])
