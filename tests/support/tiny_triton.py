# SPDX-License-Identifier: Apache-2.0
"""A server for both of Triton's protocols, for failures that a real server cannot produce on demand."""

import base64
import json
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

MAX_REQUESTS = 64  # at once

HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
}

CONFIG = {"name": "caption", "backend": "tiny", "platform": "", "input": [{"name": "image"}]}

Inputs = dict[str, npt.NDArray[Any]]
Answer = tuple[str, float, int]  # caption, score, num_tokens
Event = dict[str, Any]  # of a stream: outputs by name, as JSON has them


class Refusal(Exception):
    """Makes the server answer with an error."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


FULL = Refusal(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


@dataclass
class TinyTriton:
    """Its ports, and the functions that answer requests: `answer` and `grow`, which may be replaced at any time."""

    answer: Callable[[Inputs], Answer]
    grow: Callable[[Inputs], Iterable[Event]]
    ready: bool = True
    name: str = "triton"
    parameters: dict[str, str] = field(default_factory=dict)  # of the model's config
    headers: list[dict[str, str]] = field(default_factory=list)  # of each request, names in lower case
    http_port: int = 0
    grpc_port: int = 0

    def port(self, scheme: str) -> int:
        return self.grpc_port if scheme == "grpc" else self.http_port

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.port(scheme)}"

    @property
    def config(self) -> dict[str, Any]:
        return CONFIG | {"parameters": {name: {"string_value": text} for name, text in self.parameters.items()}}


def size_of_image(inputs: Inputs) -> Answer:
    """The default answer: "12 bytes"."""
    return f"{len(inputs['image'][0, 0])} bytes", -1.5, 2


class Gate:
    """An answer that waits until the gate is opened. It counts the requests that wait."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.waiting = 0
        self.most_waiting = 0
        self._lock = threading.Lock()

    def __call__(self, inputs: Inputs) -> Answer:
        with self._lock:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        self.opened.wait(30)
        with self._lock:
            self.waiting -= 1
        return size_of_image(inputs)


def word_by_word(inputs: Inputs) -> Iterator[Event]:
    """The default stream: "12", and then " bytes" with the outputs of `size_of_image`."""
    caption, score, num_tokens = size_of_image(inputs)
    first, space, rest = caption.partition(" ")
    yield {"text": first, "score": score / num_tokens}
    yield {
        "text": space + rest,
        "caption": caption,
        "score": score,
        "num_tokens": num_tokens,
        "token_scores": [score / num_tokens] * num_tokens,
        "finish_reason": "stop",
    }


def event_outputs(event: Event) -> list[tuple[str, str, bytes]]:
    """An event for gRPC: name, datatype and raw bytes of each output."""
    found = []
    for name, value in event.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], str):
            raw = serialize_byte_tensor(np.array([each.encode() for each in values], dtype=np.object_)).item()
            found.append((name, "BYTES", raw))
        elif name == "num_tokens":
            found.append((name, "INT32", struct.pack(f"<{len(values)}i", *values)))
        else:
            found.append((name, "FP32", struct.pack(f"<{len(values)}f", *values)))
    return found


def outputs(answer: Answer) -> list[tuple[str, str, bytes]]:
    """Name, Triton datatype and raw bytes of each output. Shapes are [1, 1], and [1, 1, T] for token_scores."""
    caption, score, num_tokens = answer
    return [
        ("caption", "BYTES", serialize_byte_tensor(np.array([[caption.encode()]], dtype=np.object_)).item()),
        ("score", "FP32", struct.pack("<f", score)),
        ("num_tokens", "INT32", struct.pack("<i", num_tokens)),
        ("token_scores", "FP32", struct.pack(f"<{num_tokens}f", *[score / num_tokens] * num_tokens)),
    ]


def shape_of(name: str, raw: bytes) -> list[int]:
    return [1, 1, len(raw) // 4] if name == "token_scores" else [1, 1]  # of one caption


def tensor(datatype: str, shape: list[int], raw: bytes) -> npt.NDArray[Any]:
    flat = deserialize_bytes_tensor(raw) if datatype == "BYTES" else np.frombuffer(raw, triton_to_np_dtype(datatype))
    return np.asarray(flat.reshape(shape))


def read_inputs(request: Any) -> Inputs:
    return {
        each.name: tensor(each.datatype, list(each.shape), raw)
        for each, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def infer_response(request: Any, found: list[tuple[str, str, bytes]]) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name)
    for name, datatype, raw in found:
        response.outputs.add(name=name, datatype=datatype, shape=shape_of(name, raw))
        response.raw_output_contents.append(raw)
    return response


def grpc_servicer(tiny: TinyTriton) -> Any:
    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002, N802
            return service_pb2.ModelReadyResponse(ready=tiny.ready)

        def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002, N802
            return service_pb2.ServerMetadataResponse(name=tiny.name, version="2.51.0")

        def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002, N802
            return service_pb2.ModelConfigResponse(
                config=json_format.ParseDict(tiny.config, model_config_pb2.ModelConfig())
            )

        def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
            tiny.headers.append(dict(context.invocation_metadata()))
            inputs = read_inputs(request)
            try:
                answer = tiny.answer(inputs)
            except Refusal as refusal:
                context.abort(refusal.code, refusal.message)
            return infer_response(request, outputs(answer))

        def ModelStreamInfer(self, requests: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
            tiny.headers.append(dict(context.invocation_metadata()))
            assert tiny.headers[-1]["triton_grpc_error"] == "true"
            for request in requests:
                try:
                    for event in tiny.grow(read_inputs(request)):
                        response = infer_response(request, event_outputs(event))
                        yield service_pb2.ModelStreamInferResponse(infer_response=response)
                except Refusal as refusal:
                    context.abort(refusal.code, refusal.message)

    return Servicer()


def http_handler(tiny: TinyTriton) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/v2":
                self.respond(200, {}, json.dumps({"name": tiny.name, "version": "2.51.0"}).encode())
            elif self.path.endswith("/config"):
                self.respond(200, {}, json.dumps(tiny.config).encode())
            else:
                self.respond(200 if tiny.ready else 400, {}, b"")

        def do_POST(self) -> None:
            tiny.headers.append({name.lower(): value for name, value in self.headers.items()})
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/generate_stream"):
                self.stream(json.loads(body))
                return
            start = int(self.headers["Inference-Header-Content-Length"])
            inputs = {}
            for each in json.loads(body[:start])["inputs"]:
                size = each["parameters"]["binary_data_size"]
                inputs[each["name"]] = tensor(each["datatype"], each["shape"], body[start : start + size])
                start += size
            try:
                answer = tiny.answer(inputs)
            except Refusal as refusal:
                self.respond(HTTP_STATUS[refusal.code], {}, json.dumps({"error": refusal.message}).encode())
                return
            described = [
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": shape_of(name, raw),
                    "parameters": {"binary_data_size": len(raw)},
                }
                for name, datatype, raw in outputs(answer)
            ]
            header = json.dumps({"model_name": "caption", "outputs": described}).encode()
            self.respond(
                200,
                {"Inference-Header-Content-Length": str(len(header))},
                header + b"".join(raw for _, _, raw in outputs(answer)),
            )

        def stream(self, fields: dict[str, Any]) -> None:
            fields.pop("id")
            image = base64.b64decode(fields.pop("image").partition(",")[2])
            inputs = {name: np.array([[value]]) for name, value in fields.items()}
            statuses = iter([200])
            try:
                for event in tiny.grow(inputs | {"image": np.array([[image]], dtype=np.object_)}):
                    self.send_event(event, next(statuses, None))
            except Refusal as refusal:
                self.send_event({"error": refusal.message}, 400 if next(statuses, None) else None)
            self.send_event(None, next(statuses, None))

        def send_event(self, event: Event | None, status: int | None) -> None:
            """Send an event or the end, and before the first one the status."""
            if status:
                self.send_response(status)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
            chunk = b"" if event is None else f"data: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

        def respond(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_REQUESTS

    def handle_error(self, *_: object) -> None:
        """Ignore clients that hang up."""


@contextmanager
def tiny_triton(grpc_address: str = "127.0.0.1:0") -> Iterator[TinyTriton]:
    """A server that listens over gRPC and HTTP."""
    tiny = TinyTriton(size_of_image, word_by_word)
    http_server = HttpServer(("127.0.0.1", 0), http_handler(tiny))
    tiny.http_port = http_server.server_address[1]
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    grpc_server = grpc.server(ThreadPoolExecutor(MAX_REQUESTS))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(grpc_servicer(tiny), grpc_server)
    tiny.grpc_port = grpc_server.add_insecure_port(grpc_address)
    grpc_server.start()
    try:
        yield tiny
    finally:
        grpc_server.stop(grace=None).wait()
        http_server.shutdown()
        http_server.server_close()
        thread.join()
