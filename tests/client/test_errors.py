# SPDX-License-Identifier: Apache-2.0
import http
import re
from contextlib import AbstractContextManager
from threading import Event

import grpc
import httpcore2
import pytest

import blipstream.errors
from blipstream.files import NGINX
from blipstream.images.formats import identify
from blipstream_client import (
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
    _errors,
    _exceptions,
    _grpc,
    _http,
)
from blipstream_client._errors import StatusError, error_from_status, translated_errors

URL = "grpc://captions:8001"
TIMEOUT = 2.5

GRPC = {
    grpc.StatusCode.CANCELLED: RequestCancelled,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: RequestTimeout,
    grpc.StatusCode.NOT_FOUND: ModelNotReady,
    grpc.StatusCode.ALREADY_EXISTS: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerOverloaded,
    grpc.StatusCode.FAILED_PRECONDITION: ServerError,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.OUT_OF_RANGE: ServerError,
    grpc.StatusCode.UNIMPLEMENTED: ServerError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: ServerUnreachable,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
}

HTTP = {
    400: InvalidRequest,
    401: AccessDenied,
    403: AccessDenied,
    404: ModelNotReady,
    405: ServerUnreachable,
    408: RequestTimeout,
    413: InvalidRequest,
    429: ServerOverloaded,
    502: ServerUnreachable,
    503: ServerUnreachable,
    504: RequestTimeout,
}


def error(status: str, message: str = "Some words.") -> BlipstreamError:
    return error_from_status(status, message, url=URL, timeout=TIMEOUT)


def errors(closed: Event | None = None) -> AbstractContextManager[None]:
    return translated_errors(_http.translate, url=URL, timeout=TIMEOUT, closed=closed or Event())


def test_every_grpc_status_has_its_error() -> None:
    assert {code: type(error(code.name)) for code in grpc.StatusCode if code != grpc.StatusCode.OK} == GRPC


def test_every_http_status_has_its_error() -> None:
    for status in http.HTTPStatus:
        if status >= 400:
            assert type(error(str(status.value))) is HTTP.get(status, ServerError), status


@pytest.mark.parametrize("status", ["UNAVAILABLE", "503"])
def test_our_proxy_is_not_called_silent(status: str) -> None:
    """It answers so where it finds no server."""
    (message,) = set(re.findall(r"no captions at[^\"]*", (NGINX / "nginx.conf").read_text()))
    found = error(status, message)
    assert type(found) is ServerUnreachable
    assert str(found) == f"{URL} answered {status}: {message}"
    assert str(error("UNAVAILABLE", "Socket closed")).startswith(f"No Triton server answers at {URL}: start it")


@pytest.mark.parametrize("status", ["UNAVAILABLE", "503", "400", ""])
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[request id: <id_unknown>] Exceeds maximum queue size", ServerOverloaded),
        ("in ensemble 'caption', [request id: 7] Exceeds maximum queue size", ServerOverloaded),
        ("[request id: 7] Request timeout expired", RequestTimeout),
        ("Request for unknown model: 'caption' version 1 is not at ready state", ModelNotReady),
        ("This protocol is restricted, expecting header 'key'", AccessDenied),
        ("Stub process 'caption_stream_0_0' is not healthy.", ServerError),
    ],
)
def test_tritons_message_counts_more_than_the_status(status: str, message: str, expected: type[Exception]) -> None:
    assert type(error(status, message)) is expected


@pytest.mark.parametrize("status", ["INTERNAL", "UNAVAILABLE", "500", "503", "400", ""])
@pytest.mark.parametrize("prefix", ["", "in ensemble 'caption', ", "in ensemble 'caption', [request id: a b] "])
@pytest.mark.parametrize(
    ("code", "expected", "transient"),
    [
        ("invalid_image", InvalidImage, False),
        ("invalid_input", InvalidRequest, False),
        ("overloaded", ServerOverloaded, True),
        ("stopping", ServerUnreachable, True),
        ("timeout", RequestTimeout, False),
        ("cancelled", RequestCancelled, False),
        ("internal", ServerError, False),
        ("backend_died", ServerError, True),
        ("artifact_error", ServerError, False),
        ("server_error", ServerError, False),
    ],
)
def test_the_servers_code_counts_most(
    status: str, prefix: str, code: str, expected: type[BlipstreamError], transient: bool
) -> None:
    """More than the status and more than any words, which are the sender's where they repeat a value."""
    message = "prompt must be text, not 'Exceeds maximum queue size [timeout] Stub process'"
    found = error(status, f"{prefix}[{code}] {message}")
    assert (type(found), found.code, found.transient) == (expected, code, transient)
    assert message in str(found)
    assert code not in str(found).replace(message, "")


def test_every_code_of_the_server_is_known() -> None:
    def below(kind: type[blipstream.errors.BlipstreamError]) -> list[type[blipstream.errors.BlipstreamError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in below(child))]

    assert {kind.code for kind in below(blipstream.errors.BlipstreamError)} == _errors._BY_CODE.keys()


def test_what_the_server_writes_the_client_reads() -> None:
    text = blipstream.errors.format_error(blipstream.errors.Overloaded("512 requests wait already"))
    found = error("INTERNAL", f"in ensemble 'caption', {text}")
    assert (type(found), str(found)) == (ServerOverloaded, "512 requests wait already")


@pytest.mark.parametrize(
    ("status", "text", "expected", "code"),
    [
        ("UNAVAILABLE", "32 requests wait already", ServerUnreachable, "unreachable"),
        ("INVALID_ARGUMENT", "num_beams must be between 1 and 10, not 99", InvalidRequest, "invalid_input"),
        ("500", "the server failed at this request", ServerError, "internal"),
        ("400", "[of_the_future] no such word", InvalidRequest, "of_the_future"),
        ("503", "[of_the_future] Exceeds maximum queue size", ServerUnreachable, "of_the_future"),
        ("429", "", ServerOverloaded, "overloaded"),
    ],
)
def test_older_and_newer_servers(status: str, text: str, expected: type[BlipstreamError], code: str) -> None:
    """Without a code that is known, the status decides."""
    found = error(status, text)
    assert (type(found), found.code) == (expected, code)


def test_each_error_has_a_code_of_its_own() -> None:
    kinds = [
        each for each in vars(_exceptions).values() if isinstance(each, type) and issubclass(each, BlipstreamError)
    ]
    assert len({kind.code for kind in kinds}) == len(kinds) > 10


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
    unreachable = str(error("UNAVAILABLE", refused))
    assert URL in unreachable
    assert unreachable.endswith("(ipv4:127.0.0.1:9: Connection refused (111))")
    assert f"{URL} within 2.5 s" in str(error("DEADLINE_EXCEEDED", "Deadline Exceeded"))
    assert str(error("418", "")) == f"The server at {URL} answered 418 without a message"


def test_the_remedy_for_json_is_for_others() -> None:
    with pytest.raises(blipstream.errors.InvalidImage, match=r"in JSON as base64$") as caught:
        identify(b"no image")
    assert str(error("400", f"[invalid_image] {caught.value}")).endswith(": send the bytes of such a file")


def test_an_unknown_model_has_a_remedy() -> None:
    told = str(error("404", "Request for unknown model: 'nope' is not found"))
    assert told.endswith("'nope' is not found: `blipstream info` names those that the server has")
    assert "info" not in str(error("404", "Request for unknown model: 'nope' has no available versions"))


def test_a_path_that_triton_lacks_is_of_the_address() -> None:
    for url in ("http://captions:8000/v2", "http://captions:8000/v2/"):
        found = error_from_status("404", "Not Found", url=url, timeout=TIMEOUT)
        assert (type(found), found.code) == (InvalidURL, "invalid_url")
        assert str(found).startswith(
            "No Triton answers at http://captions:8000/v2/v2 (404 Not Found): mend the address"
        )


def test_transient_errors() -> None:
    assert error("UNAVAILABLE").transient
    assert error("UNAVAILABLE", "Exceeds maximum queue size").transient
    assert error("503", "Model 'caption' is not at ready state").transient
    assert error("NOT_FOUND", "Request for unknown model: 'caption' has no available versions").transient
    assert error("INTERNAL", "Stub process 'decoder_0_0' is not healthy.").transient
    assert not error("INTERNAL").transient
    assert not error("404", "Request for unknown model: 'caption' is not found").transient
    assert not error("UNAVAILABLE", "Request timeout expired").transient
    assert not error("INVALID_ARGUMENT").transient


class RpcError(grpc.RpcError):  # type: ignore[misc]
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.NOT_FOUND

    def details(self) -> str:
        return "words"


@pytest.mark.parametrize(
    ("stranger", "expected"),
    [
        (RpcError(), ModelNotReady),
        (StatusError("404", "words"), ModelNotReady),
        (httpcore2.ConnectError("[Errno 111] Connection refused"), ServerUnreachable),
        (httpcore2.ConnectTimeout("timed out"), RequestTimeout),
        (httpcore2.ReadTimeout("timed out"), RequestTimeout),
        (httpcore2.ReadError("reset"), ServerUnreachable),
        (httpcore2.RemoteProtocolError("illegal status line"), ServerUnreachable),
        (ZeroDivisionError(), type(None)),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_third_party_errors_become_ours(stranger: Exception, expected: type) -> None:
    found = [translate(stranger, URL, TIMEOUT) for translate in (_grpc.translate, _http.translate)]
    assert type(next(filter(None, found), None)) is expected


def test_every_error_of_the_http_library_is_known() -> None:
    kinds = [each for each in vars(httpcore2).values() if isinstance(each, type) and issubclass(each, Exception)]
    for kind in kinds:
        if kind not in UNUSED:
            assert isinstance(_http.translate(kind("words"), URL, TIMEOUT), BlipstreamError), kind


# proxies and other schemes are not used, and a pool handles the first itself
UNUSED = {httpcore2.ConnectionNotAvailable, httpcore2.ProxyError, httpcore2.UnsupportedProtocol}


@pytest.mark.parametrize("odd", [ValueError("not JSON"), KeyError("outputs"), TypeError("not a list")])
def test_a_response_that_makes_no_sense(odd: Exception) -> None:
    with pytest.raises(ServerError, match="not one that Triton gives"), errors():
        raise odd


def test_the_cause_is_kept() -> None:
    cause = httpcore2.ConnectError("No route to host")
    with pytest.raises(ServerUnreachable, match="No route to host") as caught, errors():
        raise cause
    assert caught.value.__cause__ is cause


def test_our_own_errors_and_bugs_pass_unchanged() -> None:
    for own in (ModelNotReady("words"), ZeroDivisionError()):
        with pytest.raises(type(own)) as caught, errors():
            raise own
        assert caught.value is own


def test_any_error_after_closing_is_a_cancellation() -> None:
    closed = Event()
    around = errors(closed)
    around.__enter__()
    closed.set()
    with pytest.raises(RequestCancelled, match="before the answer came"):
        around.__exit__(OSError, OSError(), None)
    with pytest.raises(RequestCancelled, match="The client is closed"), errors(closed):
        pytest.fail("entered though closed")
