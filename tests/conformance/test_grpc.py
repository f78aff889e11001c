# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol over gRPC, through stubs as protoc generates them.

Those in tritonclient come from Triton's own grpc_service.proto, which extends the public one.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from blipstream.server.triton import TritonServer
from tests.conftest import SAMPLES

BOOK = (SAMPLES / "a-book.jpg").read_bytes()
CAPTION = b"a book on a purple background"
TIMEOUT = 120.0  # seconds


@pytest.fixture(scope="module")
def stub(server: TritonServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request(**inputs: tuple[str, str, Any]) -> Any:
    """A request with typed contents. Each input has a datatype, the field for its contents, and a value."""
    message = service_pb2.ModelInferRequest(model_name="caption", id="my-own")
    for name, (datatype, field, value) in inputs.items():
        tensor = message.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        getattr(tensor.contents, field).append(value)
    return message


def elements(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor, each with its length before it."""
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found


def captions(answer: Any) -> list[bytes]:
    names = [output.name for output in answer.outputs]
    return elements(answer.raw_output_contents[names.index("caption")])


def test_health(stub: Any) -> None:
    assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=TIMEOUT).live
    assert stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=TIMEOUT).ready
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name="caption"), timeout=TIMEOUT).ready


def test_metadata(stub: Any) -> None:
    metadata = stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=TIMEOUT)
    assert metadata.name.startswith("emoji-demo@")
    model = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="caption"), timeout=TIMEOUT)
    assert ("image", "BYTES", [-1, 1]) in [(each.name, each.datatype, list(each.shape)) for each in model.inputs]
    assert [each.name for each in model.outputs][:2] == ["caption", "score"]


def test_typed_contents(stub: Any) -> None:
    message = request(
        image=("BYTES", "bytes_contents", BOOK),
        num_beams=("INT32", "int_contents", 3),
        num_captions=("INT32", "int_contents", 2),
        early_stopping=("BOOL", "bool_contents", True),
        length_penalty=("FP32", "fp32_contents", 1.5),
        prompt=("BYTES", "bytes_contents", b"a"),
    )
    answer = stub.ModelInfer(message, timeout=TIMEOUT)
    assert answer.id == "my-own"
    assert captions(answer)[0] == CAPTION
    assert len(captions(answer)) == 2
    assert {output.name: list(output.shape) for output in answer.outputs}["num_tokens"] == [1, 2]


def test_raw_contents(stub: Any) -> None:
    message = service_pb2.ModelInferRequest(model_name="caption")
    message.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    message.raw_input_contents.append(len(BOOK).to_bytes(4, "little") + BOOK)
    assert captions(stub.ModelInfer(message, timeout=TIMEOUT)) == [CAPTION]


def test_a_batch_in_one_request(stub: Any) -> None:
    message = service_pb2.ModelInferRequest(model_name="caption")
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[2, 1])
    tensor.contents.bytes_contents.extend([BOOK, (SAMPLES / "two-whales.jpg").read_bytes()])
    assert captions(stub.ModelInfer(message, timeout=TIMEOUT)) == [CAPTION, b"two whales on a purple background"]


def test_inferences_in_a_stream(stub: Any) -> None:
    asked = [request(image=("BYTES", "bytes_contents", BOOK)) for _ in range(3)]
    answers = list(stub.ModelStreamInfer(iter(asked), timeout=TIMEOUT))
    assert [answer.error_message for answer in answers] == ["", "", ""]
    assert [captions(answer.infer_response) for answer in answers] == [[CAPTION]] * 3


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (request(image=("BYTES", "bytes_contents", b"no image")), grpc.StatusCode.INVALID_ARGUMENT),
        (request(image=("INT32", "int_contents", 1)), grpc.StatusCode.INVALID_ARGUMENT),
        (request(picture=("BYTES", "bytes_contents", BOOK)), grpc.StatusCode.INVALID_ARGUMENT),
        (service_pb2.ModelInferRequest(model_name="absent"), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_status_of_errors(stub: Any, message: Any, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, timeout=TIMEOUT)
    assert caught.value.code() == code
    assert "Traceback" not in caught.value.details()
