# SPDX-License-Identifier: Apache-2.0
"""Questions over gRPC: one channel, which is one connection, for all of an endpoint's requests."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import ModuleType
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from blipstream_client._contract import Tensors
from blipstream_client._endpoints import Address
from blipstream_client._exceptions import BlipstreamError, error_from_status, no_answer, translated_errors
from blipstream_client._questions import AnswerT, GetConfig, GetServer, Infer, InferStream, IsReady, Question
from blipstream_client._transport import CONNECT_SECONDS, Deadline, Settings, StatusError
from blipstream_client._wire import datatype, from_raw, to_raw

Exchange = tuple[str, Any, Callable[[Any], Any]]  # the service's method, the message, what its answer says


def exchange(question: Question[Any], deadline: Deadline) -> Exchange:
    """How a question is asked."""
    match question:
        case Infer():
            return "ModelInfer", infer_request(question, deadline), read_outputs
        case InferStream():
            return "ModelStreamInfer", iter([infer_request(question, deadline)]), read_streamed
        case IsReady(model):
            return "ModelReady", service_pb2.ModelReadyRequest(name=model), lambda answer: answer.ready
        case GetServer():
            return "ServerMetadata", service_pb2.ServerMetadataRequest(), read_dictionary
        case GetConfig(model):
            request = service_pb2.ModelConfigRequest(name=model)
            return "ModelConfig", request, lambda answer: read_dictionary(answer.config)
        case _:
            raise NotImplementedError(question)


def infer_request(question: Infer | InferStream, deadline: Deadline) -> Any:  # noqa: ANN401
    """The message that asks for the model's outputs."""
    request = service_pb2.ModelInferRequest(model_name=question.model, id=question.request_id)
    request.parameters["timeout"].int64_param = deadline.microseconds_left()
    for name, tensor in question.inputs.items():
        request.inputs.add(name=name, datatype=datatype(tensor), shape=tensor.shape)
        request.raw_input_contents.append(to_raw(tensor))
    return request


def read_outputs(answer: Any) -> Tensors:  # noqa: ANN401
    """The tensors in the answer to it."""
    pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return {output.name: from_raw(output.datatype, output.shape, raw) for output, raw in pairs}


def read_streamed(answer: Any) -> Tensors:  # noqa: ANN401
    """The tensors in one answer of a stream. Raises StatusError."""
    if answer.error_message:
        raise StatusError("", answer.error_message)
    return read_outputs(answer.infer_response)


def read_dictionary(message: Any) -> dict[str, Any]:  # noqa: ANN401
    """A message as HTTP would have it."""
    dictionary: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return dictionary


def channel_options(settings: Settings) -> list[tuple[str, int | str]]:
    """What a channel is told; times are in milliseconds."""
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.lb_policy_name", "round_robin"),  # of the addresses that a name has, as of Kubernetes' headless Services
        # Else a client that came before its server is refused for up to two minutes after it starts.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1_000)),  # which is also the time to connect in
        ("grpc.keepalive_time_ms", int(settings.keepalive * 1_000)),
        ("grpc.keepalive_timeout_ms", int(CONNECT_SECONDS * 1_000)),
        ("grpc.http2.ping_timeout_ms", int(CONNECT_SECONDS * 1_000)),  # of gRPC's own pings, which displace those
        ("grpc.http2.max_pings_without_data", 0),  # as many as it takes while a request waits
    ]


def translate(exc: Exception, url: str, timeout: float) -> BlipstreamError | None:
    """The client's own error for gRPC's; None for a stranger."""
    match exc:
        case grpc.RpcError():
            return error_from_status(exc.code().name, exc.details() or "", url=url, timeout=timeout)
        case StatusError():
            return error_from_status(exc.status, str(exc), url=url, timeout=timeout)
        case TimeoutError() | Empty():
            return no_answer(url, timeout)
        case _:
            return None


class Endpoint:
    """What the two transports share: a channel to one endpoint, of `grpc` or of `grpc.aio`, and calls on it."""

    def __init__(self, package: ModuleType, address: Address, settings: Settings) -> None:
        self.closed = Event()
        self.errors = partial(translated_errors, translate, url=address.url, closed=self.closed)
        # gRPC wants names in lower case; the last one has Triton give an error in mid-stream its status
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

    def exchange(self, question: Question[Any], deadline: Deadline) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
        """A function that asks, and one that says what an answer means."""
        method, request, read = exchange(question, deadline)
        return partial(getattr(self._stub, method), request, metadata=self._metadata), read


class GrpcTransport:
    """To one endpoint, from any number of threads."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(grpc, address, settings)

    def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""
        call, read = self._endpoint.exchange(question, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            answer: AnswerT = read(call(timeout=deadline.left()))
            return answer

    def stream(self, question: Question[AnswerT], deadline: Deadline) -> Generator[AnswerT, None, None]:
        """The server's answers as they come; see `Transport.stream`."""
        call, read = self._endpoint.exchange(question, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            answers = call()
            arrived: SimpleQueue[Any] = SimpleQueue()
            # gRPC can wait for the next answer only without a deadline, so another thread does
            Thread(target=_pass_on, args=(answers, arrived), name="blipstream-stream", daemon=True).start()
            try:
                while (answer := arrived.get(timeout=deadline.left())) is not None:
                    if isinstance(answer, Exception):
                        raise answer
                    yield read(answer)
                    deadline.renew()
            finally:
                answers.cancel()

    def close(self) -> None:
        """Hang up. Requests in flight end at once with RequestCancelled."""
        self._endpoint.closed.set()
        self._endpoint.channel.close()


def _pass_on(answers: Any, arrived: "SimpleQueue[Any]") -> None:  # noqa: ANN401
    """Each answer, and in the end None or the error."""
    try:
        for answer in answers:
            arrived.put(answer)
        arrived.put(None)
    except Exception as exc:
        arrived.put(exc)


class AsyncGrpcTransport:
    """To one endpoint, in one event loop."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._endpoint = Endpoint(grpc.aio, address, settings)

    async def ask(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """The server's answer. Raises BlipstreamError."""
        call, read = self._endpoint.exchange(question, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            answer: AnswerT = read(await call(timeout=deadline.left()))
            return answer

    async def stream(self, question: Question[AnswerT], deadline: Deadline) -> AsyncGenerator[AnswerT, None]:
        """The server's answers as they come; see `Transport.stream`."""
        call, read = self._endpoint.exchange(question, deadline)
        with self._endpoint.errors(timeout=deadline.seconds):
            answers = call()
            arriving = aiter(answers)
            try:
                while True:
                    async with asyncio.timeout(deadline.left()):
                        answer = await anext(arriving, None)
                    if answer is None:
                        return
                    yield read(answer)
                    deadline.renew()
            finally:
                answers.cancel()

    async def aclose(self) -> None:
        """Hang up, once nothing is in flight."""
        self._endpoint.closed.set()
        await self._endpoint.channel.close()
