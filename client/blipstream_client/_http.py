# SPDX-License-Identifier: Apache-2.0
"""Tensors over HTTP/1.1.

tritonclient's HTTP client runs on gevent, and none of it may leave the thread that made it. So only its
two pure functions are used, which write a request's body and read a response's, and the standard library's
connections carry them.
"""

import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from threading import Event
from urllib.parse import quote

from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from blipstream_client._contract import Tensors
from blipstream_client._exceptions import translated_errors
from blipstream_client._transport import Address

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors


def request_body(inputs: Tensors) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request."""
    tensors = [
        InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype)).set_data_from_numpy(tensor)
        for name, tensor in inputs.items()
    ]
    body, header_length = InferenceServerClient.generate_request_body(tensors)
    return body, {HEADER_LENGTH: str(header_length)}


def response_tensors(status: int, header_length: str | None, body: bytes) -> Tensors:
    """The outputs in an inference response. Raises InferenceServerException for a status other than 200."""
    if status != 200:
        raise InferenceServerException(_error_message(body), status=str(status))
    result = InferenceServerClient.parse_response_body(
        body, header_length=int(header_length) if header_length else None
    )
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def _error_message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):  # a proxy's page, not Triton's JSON
        return ""


class HttpTransport:
    """As many kept-alive connections as there were requests at once."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._closed = Event()
        self._errors = partial(translated_errors, url=address.url, timeout=timeout, closed=self._closed)
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._idle: list[HTTPConnection] = []
        self._busy: set[HTTPConnection] = set()

    def infer(self, model: str, inputs: Tensors) -> Tensors:
        """The model's outputs for one request. Raises BlipstreamError."""
        body, headers = request_body(inputs)
        with self._errors():
            response, content = self._exchange("POST", f"/v2/models/{quote(model, safe='')}/infer", body, headers)
            return response_tensors(response.status, response.headers.get(HEADER_LENGTH), content)

    def is_model_ready(self, model: str) -> bool:
        """Whether the server says that the model can serve. Raises BlipstreamError."""
        with self._errors():
            response, _ = self._exchange("GET", f"/v2/models/{quote(model, safe='')}/ready")
            return response.status == 200

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._closed.set()
        self._close_idle()
        for connection in list(self._busy):
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on it

    def _exchange(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[HTTPResponse, bytes]:
        while True:
            connection, reused = self._borrow()
            try:
                if connection.sock is None:
                    connection.connect()
                if self._closed.is_set():  # and close() may have come before there was a socket to end
                    raise ConnectionAbortedError
                connection.request(method, self._address.path + path, body, headers or {})
                response = connection.getresponse()
                content = response.read()
            except ConnectionError:
                connection.close()
                if not reused or self._closed.is_set():
                    raise
                continue  # the server had hung up on an idle connection: take another
            except BaseException:
                connection.close()
                raise
            finally:
                self._busy.discard(connection)
            self._idle.append(connection)
            if self._closed.is_set():
                self._close_idle()
            return response, content

    def _borrow(self) -> tuple[HTTPConnection, bool]:
        """A connection of the caller's own for a while, and whether it has been used before."""
        try:
            connection, reused = self._idle.pop(), True
        except IndexError:
            connection, reused = self._connection(), False
        self._busy.add(connection)
        return connection, reused

    def _connection(self) -> HTTPConnection:
        _, _, host, port, _ = self._address
        if self._tls:
            return HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)
        return HTTPConnection(host, port, timeout=self._timeout)

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()
