# SPDX-License-Identifier: Apache-2.0
"""Questions over gRPC: one channel, which is one connection, for all of an endpoint's requests."""

from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from blipstream_client._contract import Tensors
from blipstream_client._endpoints import Address
from blipstream_client._exceptions import BlipstreamError, error_from_status, translated_errors
from blipstream_client._questions import AnswerT, GetConfig, GetServer, Infer, IsReady, Question
from blipstream_client._transport import CONNECT_SECONDS, Deadline, Settings
from blipstream_client._wire import datatype, from_raw, to_raw

Exchange = tuple[str, Any, Callable[[Any], Any]]  # the service's method, the message, what its answer says


def exchange(question: Question[Any], deadline: Deadline) -> Exchange:
    """How a question is asked."""
    match question:
        case Infer(model, inputs):
            return "ModelInfer", infer_request(model, inputs, deadline), read_outputs
        case IsReady(model):
            return "ModelReady", service_pb2.ModelReadyRequest(name=model), lambda answer: answer.ready
        case GetServer():
            return "ServerMetadata", service_pb2.ServerMetadataRequest(), read_dictionary
        case GetConfig(model):
            request = service_pb2.ModelConfigRequest(name=model)
            return "ModelConfig", request, lambda answer: read_dictionary(answer.config)
        case _:
            raise NotImplementedError(question)


def infer_request(model: str, inputs: Tensors, deadline: Deadline) -> Any:  # noqa: ANN401
    """The message that asks for the model's outputs."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.parameters["timeout"].int64_param = deadline.microseconds_left()
    for name, tensor in inputs.items():
        request.inputs.add(name=name, datatype=datatype(tensor), shape=tensor.shape)
        request.raw_input_contents.append(to_raw(tensor))
    return request


def read_outputs(answer: Any) -> Tensors:  # noqa: ANN401
    """The tensors in the answer to it."""
    pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return {output.name: from_raw(output.datatype, output.shape, raw) for output, raw in pairs}


def read_dictionary(message: Any) -> dict[str, Any]:  # noqa: ANN401
    """A message as HTTP would have it."""
    dictionary: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return dictionary


def channel_options(settings: Settings) -> list[tuple[str, int]]:
    """What a channel is told; times are in milliseconds."""
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Else a client that came before its server is refused for up to two minutes after it starts.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1_000)),  # which is also the time to connect in
        ("grpc.keepalive_time_ms", int(settings.keepalive * 1_000)),
        ("grpc.keepalive_timeout_ms", int(CONNECT_SECONDS * 1_000)),
        ("grpc.http2.ping_timeout_ms", int(CONNECT_SECONDS * 1_000)),  # of gRPC's own pings, which displace those
        ("grpc.http2.max_pings_without_data", 0),  # as many as it takes while a request waits
    ]


def credentials(settings: Settings) -> grpc.ChannelCredentials:
    """What TLS needs."""
    return grpc.ssl_channel_credentials(*settings.tls.pem)


def metadata(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The headers; gRPC wants their names in lower case."""
    return tuple((name.lower(), value) for name, value in settings.headers.items())


def translate(exc: Exception, url: str, timeout: float) -> BlipstreamError | None:
    """The client's own error for gRPC's; None for a stranger."""
    if isinstance(exc, grpc.RpcError):
        return error_from_status(exc.code().name, exc.details() or "", url=url, timeout=timeout)
    return None


class GrpcTransport:
    """To one endpoint, from any number of threads."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._closed = Event()
        self._errors = partial(translated_errors, translate, url=address.url, closed=self._closed)
        self._metadata = metadata(settings)
        options = channel_options(settings)
        if address.secure:
            self._channel = grpc.secure_channel(address.netloc, credentials(settings), options)
        else:
            self._channel = grpc.insecure_channel(address.netloc, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""
        method, request, read = exchange(question, deadline)
        with self._errors(timeout=deadline.seconds):
            call = getattr(self._stub, method)
            answer: AnswerT = read(call(request, timeout=deadline.left(), metadata=self._metadata))
            return answer

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._closed.set()
        self._channel.close()


class AsyncGrpcTransport:
    """To one endpoint, in one event loop."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._closed = Event()
        self._errors = partial(translated_errors, translate, url=address.url, closed=self._closed)
        self._metadata = metadata(settings)
        options = channel_options(settings)
        if address.secure:
            self._channel = grpc.aio.secure_channel(address.netloc, credentials(settings), options)
        else:
            self._channel = grpc.aio.insecure_channel(address.netloc, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""
        method, request, read = exchange(question, deadline)
        with self._errors(timeout=deadline.seconds):
            call = getattr(self._stub, method)
            answer: AnswerT = read(await call(request, timeout=deadline.left(), metadata=self._metadata))
            return answer

    async def aclose(self) -> None:
        """Hang up, once nothing is in flight."""
        self._closed.set()
        await self._channel.close()
