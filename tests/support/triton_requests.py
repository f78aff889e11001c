# SPDX-License-Identifier: Apache-2.0
"""Requests to a running Triton with NVIDIA's own client, in a line each."""

import json
import urllib.error
import urllib.request
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from blipstream.server.triton import TritonServer

Options = dict[str, Any]


def tensor(name: str, array: npt.NDArray[Any]) -> InferInput:
    result = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    result.set_data_from_numpy(array)
    return result


def words(*values: bytes) -> npt.NDArray[Any]:
    return np.array([[value] for value in values], np.object_)


def infer(triton: InferenceServerClient, model: str = "caption", /, **inputs: npt.NDArray[Any]) -> InferResult:
    return triton.infer(model, [tensor(name, array) for name, array in inputs.items()], client_timeout=120)


def caption(triton: InferenceServerClient, image: bytes, /, **options: npt.NDArray[Any]) -> str:
    return str(infer(triton, image=words(image), **options).as_numpy("caption")[0, 0].decode())


def refusal(triton: InferenceServerClient, model: str = "caption", /, **inputs: npt.NDArray[Any]) -> str:
    """The message of a request that is refused by its sender's fault."""
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, model, **inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    message = str(caught.value.message())
    assert "Traceback" not in message
    assert "\n" not in message
    return message


def failure(triton: InferenceServerClient, model: str, /, **inputs: npt.NDArray[Any]) -> str:
    """The message of a request that fails by the server's fault."""
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, model, **inputs)
    assert caught.value.status() == "StatusCode.INTERNAL"
    return str(caught.value.message())


def post(server: TritonServer, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and the body that a model's route answers to JSON."""
    question = urllib.request.Request(
        f"{server.http_url}/v2/models/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(question) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Streams:
    """A gRPC stream for several requests at a time, which differ by their ids."""

    def __init__(self, server: TritonServer) -> None:
        self._client = InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
        self._answers: SimpleQueue[tuple[InferResult | None, InferenceServerException | None]] = SimpleQueue()
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def ask(self, image: bytes, options: Options, number: int = 0, timeout: int | None = None, **more: Any) -> None:
        self._client.async_stream_infer(
            "caption_stream", inputs(image, options), request_id=str(number), timeout=timeout, **more
        )

    def answer(self) -> InferResult:
        result, error = self._answers.get(timeout=60)
        if error:
            raise error
        assert result
        return result

    def gather(self, count: int = 1) -> list[list[InferResult]]:
        """The pieces of each request, once so many requests are finished."""
        streamed: list[list[InferResult]] = [[] for _ in range(count)]
        finished = 0
        while finished < count:
            result = self.answer()
            streamed[int(result.get_response().id)].append(result)
            finished += result.as_numpy("finish_reason") is not None
        return streamed

    def close(self, *, cancel: bool = False) -> None:
        self._client.stop_stream(cancel)
        self._client.close()


def text(pieces: list[InferResult]) -> str:
    return b"".join(piece.as_numpy("text")[0, 0] for piece in pieces).decode()


def inputs(image: bytes, options: Options) -> list[InferInput]:
    kinds = {str: np.object_, bool: np.bool_, int: np.int32, float: np.float32}
    arrays = {"image": np.array([[image]], np.object_)}
    for name, value in options.items():
        dtype = np.int64 if name == "seed" else kinds[type(value)]
        arrays[name] = np.array([[value.encode() if isinstance(value, str) else value]], dtype)
    return [tensor(name, array) for name, array in arrays.items()]
