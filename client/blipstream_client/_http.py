# SPDX-License-Identifier: Apache-2.0
"""The transports over HTTP/1.1. They keep as many connections as there were requests at once."""

import json
import socket
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from threading import Event
from typing import Any
from urllib.parse import quote

import h11
import httpcore2
import numpy as np

from blipstream_client._deadline import Deadline
from blipstream_client._endpoints import Address
from blipstream_client._errors import (
    STRANGE_RESPONSES,
    StatusError,
    error_from_status,
    no_response,
    translated_errors,
    unreachable,
)
from blipstream_client._events import EventReader
from blipstream_client._exceptions import BlipstreamError, InvalidRequest
from blipstream_client._network import AbortableBackend
from blipstream_client._requests import (
    ConfigRequest,
    InferRequest,
    MetadataRequest,
    ReadyRequest,
    Request,
    ResponseT,
    StreamRequest,
)
from blipstream_client._tensors import Tensors, datatype, from_raw, to_raw
from blipstream_client._text import excerpt
from blipstream_client._transport import CONNECT_SECONDS, Settings

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
LONGEST_KEEPALIVE = 32_767  # seconds: Linux permits no more
KEEPALIVE_PROBES = 3  # without an answer, after which a connection counts as lost


@dataclass(frozen=True)
class HttpRequest:
    """A request in HTTP, and what reads its response."""

    method: str
    path: str
    read: Callable[[Any], Any]  # takes a whole response, or one event of a stream
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def http_request(request: Request[Any], deadline: Deadline) -> HttpRequest:
    """The request in HTTP."""
    match request:
        case InferRequest(model):
            body, header_length = infer_body(request, deadline)
            headers = ((HEADER_LENGTH, str(header_length)), ("Content-Type", "application/octet-stream"))
            return HttpRequest("POST", f"{model_path(model)}/infer", read_outputs, body, headers)
        case StreamRequest(model):
            json_header = (("Content-Type", "application/json"),)
            return HttpRequest(
                "POST", f"{model_path(model)}/generate_stream", read_event, generate_body(request), json_header
            )
        case ReadyRequest(model):
            return HttpRequest("GET", f"{model_path(model)}/ready", lambda response: response.status == HTTPStatus.OK)
        case MetadataRequest():
            return HttpRequest("GET", "/v2", read_json)
        case ConfigRequest(model):
            return HttpRequest("GET", f"{model_path(model)}/config", read_json)
        case _:
            raise NotImplementedError(request)


def model_path(model: str) -> str:
    """The path of a model."""
    return f"/v2/models/{quote(model, safe='')}"


def infer_body(request: InferRequest, deadline: Deadline) -> tuple[bytes, int]:
    """A JSON header followed by the tensors' bytes, and the length of the header."""
    raw = {name: to_raw(tensor) for name, tensor in request.inputs.items()}
    described = [
        {
            "name": name,
            "shape": tensor.shape,
            "datatype": datatype(tensor),
            "parameters": {"binary_data_size": len(raw[name])},
        }
        for name, tensor in request.inputs.items()
    ]
    parameters = {"timeout": deadline.microseconds_left(), "binary_data_output": True}
    header = json.dumps({"id": request.request_id, "inputs": described, "parameters": parameters}).encode()
    return b"".join([header, *raw.values()]), len(header)


def generate_body(request: StreamRequest) -> bytes:
    """The inputs as JSON, with the image as a data URL."""

    def plain(name: str, value: Any) -> Any:  # noqa: ANN401
        if name == "image":
            return f"data:;base64,{b64encode(value).decode()}"
        return value.decode() if isinstance(value, bytes) else value

    inputs = {name: plain(name, tensor.item()) for name, tensor in request.inputs.items()}
    return json.dumps({"id": request.request_id} | inputs).encode()


def read_event(data: bytes) -> Tensors:
    """The tensors in an event, which has them flat: shape [1, K], or [1, K, T] for token_scores. Raises StatusError."""
    fields = dict(json.loads(data))
    if "error" in fields:
        raise StatusError("", str(fields["error"]))
    tensors = {}
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        flat = np.array([each.encode() if isinstance(each, str) else each for each in values], np.object_)
        tensors[name] = flat.reshape(1, -1)
    if "token_scores" in tensors:
        tensors["token_scores"] = tensors["token_scores"].reshape(1, tensors["num_tokens"].size, -1)
    return tensors


def read_outputs(response: httpcore2.Response) -> Tensors:
    """The tensors in a response. Raises StatusError."""
    check_status(response)
    lengths = [int(value) for name, value in response.headers if name.lower() == HEADER_LENGTH.lower().encode()]
    start = lengths[0] if lengths else len(response.content)
    outputs = {}
    for output in json.loads(response.content[:start])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        outputs[output["name"]] = from_raw(output["datatype"], output["shape"], response.content[start:end])
        start = end
    return outputs


def read_json(response: httpcore2.Response) -> Any:  # noqa: ANN401
    """The JSON in a response. Raises StatusError."""
    check_status(response)
    if not response.content:  # the port for metrics has an empty page at every path
        raise StatusError(str(HTTPStatus.NOT_FOUND.value), "")
    return json.loads(response.content)


def check_status(response: httpcore2.Response) -> None:
    """Raise StatusError unless the status is 200."""
    if response.status == HTTPStatus.OK:
        return
    try:
        message = str(json.loads(response.content.removeprefix(b"data:"))["error"])  # an error of a stream is an event
    except STRANGE_RESPONSES:  # a proxy's page instead of Triton's JSON
        message = ""
    raise StatusError(str(response.status), message)


def translate(exc: Exception, url: str, timeout: float) -> BlipstreamError | None:
    """The client's exception for one of HTTP's. None for any other."""
    match exc:
        case StatusError():
            return error_from_status(exc.status, str(exc), url=url, timeout=timeout)
        case httpcore2.ConnectTimeout() if timeout > CONNECT_SECONDS:
            return unreachable(url, f"it did not connect within {CONNECT_SECONDS:g} s")
        case httpcore2.TimeoutException() | TimeoutError():
            return no_response(url, timeout)
        case httpcore2.NetworkError():
            return unreachable(url, str(exc) or type(exc).__name__)
        case httpcore2.RemoteProtocolError() if "disconnected" in str(exc) or "closed" in str(exc):
            return unreachable(url, "the server closed the connection")
        case httpcore2.LocalProtocolError() | h11.LocalProtocolError() | httpcore2.UnsupportedProtocol():
            return InvalidRequest(f"The request cannot be sent over HTTP: {excerpt(exc)}")
        case httpcore2.ProtocolError() | h11.ProtocolError() | httpcore2.ProxyError():
            return unreachable(url, f"what answers there does not speak HTTP: {excerpt(exc)}")
        case _:
            return None


def socket_options(settings: Settings) -> list[tuple[int, int, int]]:
    """Socket options that make the kernel check silent connections."""
    seconds = min(max(1, int(settings.keepalive)), LONGEST_KEEPALIVE)
    linux = [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", seconds), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", KEEPALIVE_PROBES))
        if hasattr(socket, name)
    ]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *linux]


class Endpoint:
    """What both transports share: how requests to one endpoint look, and their errors."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self.closed = Event()
        self.errors = partial(translated_errors, translate, url=address.url, closed=self.closed)
        self._address = address
        self._headers = [("Host", address.netloc), *settings.headers.items()]
        self.pool: dict[str, Any] = {
            "ssl_context": settings.tls.context if address.secure else None,
            "max_connections": None,
            "socket_options": socket_options(settings),
        }

    def arguments(self, request: HttpRequest, deadline: Deadline) -> dict[str, Any]:
        """The arguments for a connection pool."""
        left = deadline.left()
        return {
            "method": request.method,
            "url": httpcore2.URL(
                scheme="https" if self._address.secure else "http",
                host=self._address.host,
                port=self._address.port,
                target=self._address.path + request.path,
            ),
            "headers": [*self._headers, *request.headers],
            "content": request.body,
            "extensions": {"timeout": {"connect": min(left, CONNECT_SECONDS), "write": left, "read": left}},
        }


class HttpTransport:
    """The transport for any number of threads."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(address, settings)
        self._backend = AbortableBackend()
        self._pool = httpcore2.ConnectionPool(network_backend=self._backend, **self._endpoint.pool)

    def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The server's response. Raises BlipstreamError."""
        http = http_request(request, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            response: ResponseT = http.read(self._pool.request(**self._endpoint.arguments(http, deadline)))
            return response

    def stream(self, request: Request[ResponseT], deadline: Deadline) -> Generator[ResponseT, None, None]:
        """The server's responses as they come. Raises BlipstreamError."""
        http = http_request(request, deadline)
        arguments = self._endpoint.arguments(http, deadline)
        with self._endpoint.errors(timeout=deadline.seconds), self._pool.stream(**arguments) as response:
            if response.status != HTTPStatus.OK:
                response.read()
                check_status(response)
            events = EventReader()
            arguments["extensions"]["timeout"]["read"] = deadline.seconds  # for each read from now on
            for chunk in response.iter_stream():
                for event in events.feed(chunk):
                    yield http.read(event)
                    deadline.renew()
                deadline.check()

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._endpoint.closed.set()
        self._backend.abort()
        self._pool.close()


class AsyncHttpTransport:
    """The transport for one event loop."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(address, settings)
        self._pool = httpcore2.AsyncConnectionPool(**self._endpoint.pool)

    async def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The server's response. Raises BlipstreamError."""
        http = http_request(request, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            response: ResponseT = http.read(await self._pool.request(**self._endpoint.arguments(http, deadline)))
            return response

    async def stream(self, request: Request[ResponseT], deadline: Deadline) -> AsyncGenerator[ResponseT, None]:
        """The server's responses as they come. Raises BlipstreamError."""
        http = http_request(request, deadline)
        arguments = self._endpoint.arguments(http, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            async with self._pool.stream(**arguments) as response:
                if response.status != HTTPStatus.OK:
                    await response.aread()
                    check_status(response)
                events = EventReader()
                arguments["extensions"]["timeout"]["read"] = deadline.seconds  # for each read from now on
                async with aclosing(response.aiter_stream()) as chunks:
                    async for chunk in chunks:
                        for event in events.feed(chunk):
                            yield http.read(event)
                            deadline.renew()
                        deadline.check()

    async def aclose(self) -> None:
        """Hang up. Call it when nothing is in flight."""
        self._endpoint.closed.set()
        await self._pool.aclose()
