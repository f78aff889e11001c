# SPDX-License-Identifier: Apache-2.0
"""The transports over gRPC. All requests to an endpoint share one channel, which is one connection."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import ModuleType
from typing import Any

# Else gRPC's C library writes a line of its own to standard error for each failed handshake. The errors say it all.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from blipstream_client._deadline import Deadline
from blipstream_client._endpoints import Address
from blipstream_client._errors import StatusError, error_from_status, no_response, translated_errors
from blipstream_client._exceptions import BlipstreamError
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
from blipstream_client._transport import CONNECT_SECONDS, Settings

Call = tuple[str, Any, Callable[[Any], Any]]  # the service's method, its message, and what reads the response


def grpc_call(request: Request[Any], deadline: Deadline) -> Call:
    """The call that sends a request."""
    match request:
        case InferRequest():
            return "ModelInfer", infer_message(request, deadline), read_outputs
        case StreamRequest():
            return "ModelStreamInfer", iter([infer_message(request, deadline)]), read_streamed
        case ReadyRequest(model):
            return "ModelReady", service_pb2.ModelReadyRequest(name=model), lambda response: response.ready
        case MetadataRequest():
            return "ServerMetadata", service_pb2.ServerMetadataRequest(), read_dictionary
        case ConfigRequest(model):
            message = service_pb2.ModelConfigRequest(name=model)
            return "ModelConfig", message, lambda response: read_dictionary(response.config)
        case _:
            raise NotImplementedError(request)


def infer_message(request: InferRequest | StreamRequest, deadline: Deadline) -> Any:  # noqa: ANN401
    """The message that asks for a model's outputs."""
    message = service_pb2.ModelInferRequest(model_name=request.model, id=request.request_id)
    message.parameters["timeout"].int64_param = deadline.microseconds_left()
    for name, tensor in request.inputs.items():
        message.inputs.add(name=name, datatype=datatype(tensor), shape=tensor.shape)
        message.raw_input_contents.append(to_raw(tensor))
    return message


def read_outputs(response: Any) -> Tensors:  # noqa: ANN401
    """The tensors in a response."""
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: from_raw(output.datatype, output.shape, raw) for output, raw in pairs}


def read_streamed(response: Any) -> Tensors:  # noqa: ANN401
    """The tensors in one response of a stream. Raises StatusError."""
    if response.error_message:
        raise StatusError("", response.error_message)
    return read_outputs(response.infer_response)


def read_dictionary(message: Any) -> dict[str, Any]:  # noqa: ANN401
    """A message as a dictionary, with the names that HTTP has."""
    dictionary: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return dictionary


def channel_options(settings: Settings) -> list[tuple[str, int | str]]:
    """The options of a channel. Times are in milliseconds."""
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        (
            "grpc.lb_policy_name",
            "round_robin",
        ),  # over a name's addresses: headless Services have several
        # Without these, a client that was there first cannot connect for up to two minutes after its server starts.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1_000)),  # also the limit on the time to connect
        ("grpc.keepalive_time_ms", int(settings.keepalive * 1_000)),
        ("grpc.keepalive_timeout_ms", int(CONNECT_SECONDS * 1_000)),
        ("grpc.http2.ping_timeout_ms", int(CONNECT_SECONDS * 1_000)),  # for gRPC's own pings, which replace keepalive's
        ("grpc.http2.max_pings_without_data", 0),  # no limit on pings while a request waits
    ]


def translate(exc: Exception, url: str, timeout: float) -> BlipstreamError | None:
    """The client's exception for one of gRPC's. None for any other."""
    match exc:
        case grpc.RpcError():
            return error_from_status(exc.code().name, exc.details() or "", url=url, timeout=timeout)
        case StatusError():
            return error_from_status(exc.status, str(exc), url=url, timeout=timeout)
        case TimeoutError() | Empty():
            return no_response(url, timeout)
        case _:
            return None


class Endpoint:
    """What both transports share: a channel to one endpoint. `package` is `grpc` or `grpc.aio`."""

    def __init__(self, package: ModuleType, address: Address, settings: Settings) -> None:
        self.closed = Event()
        self.errors = partial(translated_errors, translate, url=address.url, closed=self.closed)
        # gRPC wants names in lower case. With triton_grpc_error, an error in mid-stream has a status
        headers = {name.lower(): value for name, value in settings.headers.items()} | {"triton_grpc_error": "true"}
        self._metadata = tuple(headers.items())
        options = channel_options(settings)
        if address.is_loopback:
            options.append(("grpc.enable_http_proxy", 0))
        if address.secure:
            credentials = grpc.ssl_channel_credentials(*settings.tls.pem)
            self.channel = package.secure_channel(address.netloc, credentials, options)
        else:
            self.channel = package.insecure_channel(address.netloc, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def call(self, request: Request[Any], deadline: Deadline) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
        """A function that sends the request, and one that reads a response."""
        method, message, read = grpc_call(request, deadline)
        return partial(getattr(self._stub, method), message, metadata=self._metadata), read


class GrpcTransport:
    """The transport for any number of threads."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(grpc, address, settings)

    def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The server's response. Raises BlipstreamError."""
        call, read = self._endpoint.call(request, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            response: ResponseT = read(call(timeout=deadline.left()))
            return response

    def stream(self, request: Request[ResponseT], deadline: Deadline) -> Generator[ResponseT, None, None]:
        """The server's responses as they come. Raises BlipstreamError."""
        call, read = self._endpoint.call(request, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            responses = call()
            arrived: SimpleQueue[Any] = SimpleQueue()
            # gRPC waits for the next response without a deadline, so another thread does the waiting
            Thread(target=_pass_on, args=(responses, arrived), name="blipstream-stream", daemon=True).start()
            try:
                while (response := arrived.get(timeout=deadline.left())) is not None:
                    if isinstance(response, Exception):
                        raise response
                    yield read(response)
                    deadline.renew()
            finally:
                responses.cancel()

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._endpoint.closed.set()
        self._endpoint.channel.close()


def _pass_on(responses: Any, arrived: "SimpleQueue[Any]") -> None:  # noqa: ANN401
    """Put each response into the queue, and at the end None or the error."""
    try:
        for response in responses:
            arrived.put(response)
        arrived.put(None)
    except Exception as exc:
        arrived.put(exc)


class AsyncGrpcTransport:
    """The transport for one event loop."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(grpc.aio, address, settings)

    async def send(self, request: Request[ResponseT], deadline: Deadline) -> ResponseT:
        """The server's response. Raises BlipstreamError."""
        call, read = self._endpoint.call(request, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            response: ResponseT = read(await call(timeout=deadline.left()))
            return response

    async def stream(self, request: Request[ResponseT], deadline: Deadline) -> AsyncGenerator[ResponseT, None]:
        """The server's responses as they come. Raises BlipstreamError."""
        call, read = self._endpoint.call(request, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            responses = call()
            arriving = aiter(responses)
            try:
                while True:
                    async with asyncio.timeout(deadline.left()):
                        response = await anext(arriving, None)
                    if response is None:
                        return
                    yield read(response)
                    deadline.renew()
            finally:
                responses.cancel()

    async def aclose(self) -> None:
        """Hang up. Call it when nothing is in flight."""
        self._endpoint.closed.set()
        await self._endpoint.channel.close()
