# SPDX-License-Identifier: Apache-2.0
"""Questions over HTTP/1.1, on as many kept-alive connections as there were requests at once."""

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

from blipstream_client._contract import Tensors
from blipstream_client._endpoints import Address
from blipstream_client._events import EventReader
from blipstream_client._exceptions import (
    STRANGE_ANSWERS,
    BlipstreamError,
    InvalidRequest,
    error_from_status,
    excerpt,
    no_answer,
    translated_errors,
    unreachable,
)
from blipstream_client._questions import AnswerT, GetConfig, GetServer, Infer, InferStream, IsReady, Question
from blipstream_client._streams import CuttableBackend
from blipstream_client._transport import CONNECT_SECONDS, Deadline, Settings, StatusError
from blipstream_client._wire import datatype, from_raw, to_raw

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
LONGEST_KEEPALIVE = 32_767  # seconds of silence that Linux permits
KEEPALIVE_PROBES = 3  # unanswered, before a connection counts as lost


@dataclass(frozen=True)
class Exchange:
    """A request, and what its answer says."""

    method: str
    path: str
    read: Callable[[Any], Any]  # of a whole response, or of an event in a stream
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def exchange(question: Question[Any], deadline: Deadline) -> Exchange:
    """How a question is asked."""
    match question:
        case Infer(model):
            body, header_length = infer_body(question, deadline)
            headers = ((HEADER_LENGTH, str(header_length)), ("Content-Type", "application/octet-stream"))
            return Exchange("POST", f"{model_path(model)}/infer", read_outputs, body, headers)
        case InferStream(model):
            json_header = (("Content-Type", "application/json"),)
            return Exchange(
                "POST", f"{model_path(model)}/generate_stream", read_event, generate_body(question), json_header
            )
        case IsReady(model):
            return Exchange("GET", f"{model_path(model)}/ready", lambda answer: answer.status == HTTPStatus.OK)
        case GetServer():
            return Exchange("GET", "/v2", read_json)
        case GetConfig(model):
            return Exchange("GET", f"{model_path(model)}/config", read_json)
        case _:
            raise NotImplementedError(question)


def model_path(model: str) -> str:
    """Where a model's resources are."""
    return f"/v2/models/{quote(model, safe='')}"


def infer_body(question: Infer, deadline: Deadline) -> tuple[bytes, int]:
    """A JSON header with the tensors' bytes after it, and the length of the header."""
    raw = {name: to_raw(tensor) for name, tensor in question.inputs.items()}
    described = [
        {
            "name": name,
            "shape": tensor.shape,
            "datatype": datatype(tensor),
            "parameters": {"binary_data_size": len(raw[name])},
        }
        for name, tensor in question.inputs.items()
    ]
    parameters = {"timeout": deadline.microseconds_left(), "binary_data_output": True}
    header = json.dumps({"id": question.request_id, "inputs": described, "parameters": parameters}).encode()
    return b"".join([header, *raw.values()]), len(header)


def generate_body(question: InferStream) -> bytes:
    """The inputs as JSON, which can carry a file as a data URL only."""

    def plain(name: str, value: Any) -> Any:  # noqa: ANN401
        if name == "image":
            return f"data:;base64,{b64encode(value).decode()}"
        return value.decode() if isinstance(value, bytes) else value

    inputs = {name: plain(name, tensor.item()) for name, tensor in question.inputs.items()}
    return json.dumps({"id": question.request_id} | inputs).encode()


def read_event(data: bytes) -> Tensors:
    """The tensors in an event, which has them flat. Raises StatusError."""
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


def read_outputs(answer: httpcore2.Response) -> Tensors:
    """The tensors in the answer to it. Raises StatusError."""
    check_status(answer)
    lengths = [int(value) for name, value in answer.headers if name.lower() == HEADER_LENGTH.lower().encode()]
    start = lengths[0] if lengths else len(answer.content)
    outputs = {}
    for output in json.loads(answer.content[:start])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        outputs[output["name"]] = from_raw(output["datatype"], output["shape"], answer.content[start:end])
        start = end
    return outputs


def read_json(answer: httpcore2.Response) -> Any:  # noqa: ANN401
    """The JSON in an answer. Raises StatusError."""
    check_status(answer)
    return json.loads(answer.content)


def check_status(answer: httpcore2.Response) -> None:
    """Raises StatusError."""
    if answer.status == HTTPStatus.OK:
        return
    try:
        message = str(json.loads(answer.content.removeprefix(b"data:"))["error"])  # a stream's error is an event
    except STRANGE_ANSWERS:  # a proxy's page, not Triton's JSON
        message = ""
    raise StatusError(str(answer.status), message)


def translate(exc: Exception, url: str, timeout: float) -> BlipstreamError | None:
    """The client's own error for HTTP's; None for a stranger."""
    match exc:
        case StatusError():
            return error_from_status(exc.status, str(exc), url=url, timeout=timeout)
        case httpcore2.ConnectTimeout() if timeout > CONNECT_SECONDS:
            return unreachable(url, f"it did not connect within {CONNECT_SECONDS:g} s")
        case httpcore2.TimeoutException() | TimeoutError():
            return no_answer(url, timeout)
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
    """Have the kernel check connections that are silent."""
    seconds = min(max(1, int(settings.keepalive)), LONGEST_KEEPALIVE)
    linux = [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", seconds), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", KEEPALIVE_PROBES))
        if hasattr(socket, name)
    ]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *linux]


class Endpoint:
    """What the two transports share: how requests to one endpoint look, and their errors."""

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

    def request(self, asked: Exchange, deadline: Deadline) -> dict[str, Any]:
        """What a pool needs to know."""
        left = deadline.left()
        return {
            "method": asked.method,
            "url": httpcore2.URL(
                scheme="https" if self._address.secure else "http",
                host=self._address.host,
                port=self._address.port,
                target=self._address.path + asked.path,
            ),
            "headers": [*self._headers, *asked.headers],
            "content": asked.body,
            "extensions": {"timeout": {"connect": min(left, CONNECT_SECONDS), "write": left, "read": left}},
        }


class HttpTransport:
    """To one endpoint, from any number of threads."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(address, settings)
        self._backend = CuttableBackend()
        self._pool = httpcore2.ConnectionPool(network_backend=self._backend, **self._endpoint.pool)

    def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""
        asked = exchange(question, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            answer: AnswerT = asked.read(self._pool.request(**self._endpoint.request(asked, deadline)))
            return answer

    def stream(self, question: Question[AnswerT], deadline: Deadline) -> Generator[AnswerT, None, None]:
        """The server's answers as they come; see `Transport.stream`."""
        asked = exchange(question, deadline)
        request = self._endpoint.request(asked, deadline)
        with self._endpoint.errors(timeout=deadline.seconds), self._pool.stream(**request) as response:
            if response.status != HTTPStatus.OK:
                response.read()
                check_status(response)
            events = EventReader()
            request["extensions"]["timeout"]["read"] = deadline.seconds  # each time, now that it has begun
            for chunk in response.iter_stream():
                for event in events.feed(chunk):
                    yield asked.read(event)
                    deadline.renew()
                deadline.check()

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._endpoint.closed.set()
        self._backend.cut()
        self._pool.close()


class AsyncHttpTransport:
    """To one endpoint, in one event loop."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(address, settings)
        self._pool = httpcore2.AsyncConnectionPool(**self._endpoint.pool)

    async def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""
        asked = exchange(question, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            answer: AnswerT = asked.read(await self._pool.request(**self._endpoint.request(asked, deadline)))
            return answer

    async def stream(self, question: Question[AnswerT], deadline: Deadline) -> AsyncGenerator[AnswerT, None]:
        """The server's answers as they come; see `Transport.stream`."""
        asked = exchange(question, deadline)
        request = self._endpoint.request(asked, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            async with self._pool.stream(**request) as response:
                if response.status != HTTPStatus.OK:
                    await response.aread()
                    check_status(response)
                events = EventReader()
                request["extensions"]["timeout"]["read"] = deadline.seconds  # each time, now that it has begun
                async with aclosing(response.aiter_stream()) as chunks:
                    async for chunk in chunks:
                        for event in events.feed(chunk):
                            yield asked.read(event)
                            deadline.renew()
                        deadline.check()

    async def aclose(self) -> None:
        """Hang up, once nothing is in flight."""
        self._endpoint.closed.set()
        await self._pool.aclose()
