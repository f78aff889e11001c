# SPDX-License-Identifier: Apache-2.0
"""Without a key, a client can ask for captions, health and metadata, and for nothing else."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from blipstream.server.arguments import ADMIN_HEADER
from blipstream.server.triton import TritonServer

KEY = "s3cret"
MODEL = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.get_input_tensor_by_name(request, "x")]) for request in requests]
"""
CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""

CLOSED_HTTP = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/echo/load"),
    ("POST", "/v2/repository/models/echo/unload"),
    *(
        (method, f"/v2/{kind}sharedmemory{path}")
        for kind in ("system", "cuda")
        for method, path in [
            ("GET", "/status"),
            ("GET", "/region/x/status"),
            ("POST", "/region/x/register"),
            ("POST", "/region/x/unregister"),
            ("POST", "/unregister"),
        ]
    ),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("GET", "/v2/models/echo/trace/setting"),
    ("POST", "/v2/models/echo/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
]
OPEN_HTTP = [
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/echo",
    "/v2/models/echo/ready",
    "/v2/models/echo/config",
    "/v2/models/echo/stats",
    "/v2/models/stats",
]
OPEN_GRPC = {
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelStatistics",
}
CLOSED_GRPC = {
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("models") / "echo"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL)
    (folder / "config.pbtxt").write_text(CONFIG)
    with TritonServer(folder.parent, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def stub(guarded: TritonServer) -> Iterator[Any]:
    with grpc.insecure_channel(guarded.grpc_url.removeprefix("grpc://")) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def ask(server: TritonServer, method: str, path: str, body: bytes | None = None, key: str = "") -> tuple[int, str]:
    headers = {ADMIN_HEADER: key} if key else {}
    request = urllib.request.Request(
        server.http_url + path, b"{}" if body is None and method == "POST" else body, headers, method=method
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def call(stub: Any, method: str, key: str = "") -> str:
    """Call a method with an empty request; return the error's text, or "OK"."""
    request = getattr(service_pb2, f"{method}Request")()
    metadata = [(f"triton-grpc-protocol-{ADMIN_HEADER}", key)] if key else []
    try:
        getattr(stub, method)(request, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return str(error.details())
    return "OK"


@pytest.mark.parametrize(("method", "path"), CLOSED_HTTP)
def test_closed_over_http(guarded: TritonServer, method: str, path: str) -> None:
    for key in ("", "guess", f"{KEY}x", KEY[:-1]):
        status, text = ask(guarded, method, path, key=key)
        assert (status, "restricted" in text) == (403, True)
    status, text = ask(guarded, method, path, key=KEY)
    assert status != 403
    assert "restricted" not in text


def test_every_method_is_open_or_closed() -> None:
    """If a newer Triton adds a method, somebody must decide about it."""
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in service.methods} == OPEN_GRPC | CLOSED_GRPC


@pytest.mark.parametrize("method", sorted(CLOSED_GRPC))
def test_closed_over_grpc(stub: Any, method: str) -> None:
    for key in ("", "guess", f"{KEY}x", KEY[:-1]):
        assert "restricted" in call(stub, method, key)
    assert "restricted" not in call(stub, method, KEY)


@pytest.mark.parametrize("path", OPEN_HTTP)
def test_open_over_http(guarded: TritonServer, path: str) -> None:
    assert ask(guarded, "GET", path)[0] == 200


@pytest.mark.parametrize("method", sorted(OPEN_GRPC - {"ModelInfer", "ModelStreamInfer"}))
def test_open_over_grpc(stub: Any, method: str) -> None:
    assert "restricted" not in call(stub, method)


def test_inference_needs_no_key(guarded: TritonServer, stub: Any) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [3]}
    status, text = ask(guarded, "POST", "/v2/models/echo/infer", json.dumps({"inputs": [tensor]}).encode())
    assert (status, json.loads(text)["outputs"][0]["data"]) == (200, [3])
    request = service_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    assert stub.ModelInfer(request).raw_output_contents == [bytes(4)]
    (answer,) = stub.ModelStreamInfer(iter([request]))
    assert answer.infer_response.raw_output_contents == [bytes(4)]


def test_a_request_cannot_name_memory_that_nobody_registered(stub: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.parameters["shared_memory_region"].string_param = "/etc/passwd"
    tensor.parameters["shared_memory_byte_size"].int64_param = 4
    with pytest.raises(grpc.RpcError, match="Unable to find shared memory region"):
        stub.ModelInfer(request)
