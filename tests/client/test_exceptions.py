# SPDX-License-Identifier: Apache-2.0
import http
import http.client
from threading import Event

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from blipstream_client import (
    BlipstreamError,
    InvalidRequest,
    ModelNotReady,
    RequestCancelled,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)
from blipstream_client._exceptions import error_from_status, translate, translated_errors

URL = "grpc://captions:8001"
TIMEOUT = 2.5

GRPC = {
    grpc.StatusCode.CANCELLED: RequestCancelled,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeout,
    grpc.StatusCode.NOT_FOUND: ModelNotReady,
    grpc.StatusCode.ALREADY_EXISTS: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: ServerError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerOverloaded,
    grpc.StatusCode.FAILED_PRECONDITION: ServerError,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.OUT_OF_RANGE: ServerError,
    grpc.StatusCode.UNIMPLEMENTED: ServerError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: ServerUnreachable,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: ServerError,
}

HTTP = {
    400: InvalidRequest,
    404: ModelNotReady,
    408: RequestTimeout,
    413: InvalidRequest,
    429: ServerOverloaded,
    502: ServerUnreachable,
    503: ServerUnreachable,
    504: RequestTimeout,
}


def error(status: str, message: str = "Some words.") -> BlipstreamError:
    return error_from_status(status, message, url=URL, timeout=TIMEOUT)


def test_every_grpc_status_has_its_error() -> None:
    assert {code: type(error(str(code))) for code in grpc.StatusCode if code != grpc.StatusCode.OK} == GRPC


def test_every_http_status_has_its_error() -> None:
    for status in http.HTTPStatus:
        if status >= 400:
            assert type(error(str(status.value))) is HTTP.get(status, ServerError), status


@pytest.mark.parametrize("status", ["StatusCode.UNAVAILABLE", "503"])
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[request id: <id_unknown>] Exceeds maximum queue size", ServerOverloaded),
        ("in ensemble 'caption', [request id: 7] Exceeds maximum queue size", ServerOverloaded),
        ("[request id: 7] Request timeout expired", RequestTimeout),
        ("Request for unknown model: 'caption' version 1 is not at ready state", ModelNotReady),
        ("Server exiting", ServerUnreachable),
    ],
)
def test_unavailable_is_told_apart_by_its_words(status: str, message: str, expected: type[Exception]) -> None:
    assert type(error(status, message)) is expected


@pytest.mark.parametrize(
    "message",
    [
        "image: expected JPEG, got 3 bytes",
        "in ensemble 'caption', image: expected JPEG, got 3 bytes",
        "[request id: <id_unknown>] image: expected JPEG,\n   got 3 bytes",
        "in ensemble 'caption', [request id: a b] image: expected JPEG, got 3 bytes",
    ],
)
def test_the_servers_sentence_comes_without_tritons_prefixes(message: str) -> None:
    assert str(error("400", message)) == "image: expected JPEG, got 3 bytes"


def test_messages_say_where_why_and_how_long() -> None:
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Connection refused (111)"
    unreachable = str(error("StatusCode.UNAVAILABLE", refused))
    assert URL in unreachable
    assert unreachable.endswith("(ipv4:127.0.0.1:9: Connection refused (111))")
    assert f"{URL} within 2.5 s" in str(error("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded"))
    assert str(error("418", "")) == f"The server at {URL} answered 418 without a message"


@pytest.mark.parametrize(
    ("stranger", "expected"),
    [
        (InferenceServerException("words", "StatusCode.NOT_FOUND"), ModelNotReady),
        (InferenceServerException("words"), ServerError),
        (TimeoutError("timed out"), RequestTimeout),
        (ConnectionRefusedError(111, "Connection refused"), ServerUnreachable),
        (http.client.BadStatusLine("\x00\x00"), ServerUnreachable),
        (http.client.RemoteDisconnected("closed"), ServerUnreachable),
        (ValueError("not JSON"), ServerError),
        (KeyError("outputs"), ServerError),
        (ZeroDivisionError(), type(None)),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_third_party_errors_become_ours(stranger: Exception, expected: type) -> None:
    assert type(translate(stranger, url=URL, timeout=TIMEOUT)) is expected


def test_the_cause_is_kept() -> None:
    cause = OSError(113, "No route to host")
    with (
        pytest.raises(ServerUnreachable, match="No route to host") as caught,
        translated_errors(url=URL, timeout=TIMEOUT, closed=Event()),
    ):
        raise cause
    assert caught.value.__cause__ is cause


def test_our_own_errors_and_bugs_pass_unchanged() -> None:
    for own in (ModelNotReady("words"), ZeroDivisionError()):
        with (
            pytest.raises(type(own)) as caught,
            translated_errors(url=URL, timeout=TIMEOUT, closed=Event()),
        ):
            raise own
        assert caught.value is own


def test_whatever_fails_after_closing_was_cancelled() -> None:
    closed = Event()
    errors = translated_errors(url=URL, timeout=TIMEOUT, closed=closed)
    errors.__enter__()
    closed.set()
    with pytest.raises(RequestCancelled, match="before the answer came"):
        errors.__exit__(OSError, OSError(), None)
    with (
        pytest.raises(RequestCancelled, match="The client is closed"),
        translated_errors(url=URL, timeout=TIMEOUT, closed=closed),
    ):
        pytest.fail("entered though closed")
