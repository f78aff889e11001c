# SPDX-License-Identifier: Apache-2.0
"""The ensemble for clients that resize their images themselves."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from blipstream.images.pixels import load_pixels
from blipstream.server.triton import TritonServer
from tests.support.triton_requests import infer
from tests.support.waiting import wait_until

IMAGE_SIZE = 192  # the demo checkpoint's


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="module")
def files(scene_images: list[Image.Image]) -> list[bytes]:
    images = []
    for scene in scene_images[:16]:
        scene.save(file := BytesIO(), "JPEG")
        images.append(file.getvalue())
    return images


@pytest.mark.parametrize("options", [{}, {"num_beams": [3], "num_captions": [2]}, {"max_tokens": [2]}], ids=str)
def test_equals_caption(triton: InferenceServerClient, files: list[bytes], options: dict[str, list[int]]) -> None:
    given = {name: np.array([value] * len(files), np.int32) for name, value in options.items()}
    expected = infer(triton, "caption", image=np.array([[file] for file in files], np.object_), **given)
    pixels = np.stack([load_pixels(file, IMAGE_SIZE) for file in files])
    result = infer(triton, "caption_pixels", pixels=pixels, **given)
    for name in ("caption", "num_tokens"):
        np.testing.assert_array_equal(result.as_numpy(name), expected.as_numpy(name))
    for name in ("score", "token_scores"):
        np.testing.assert_allclose(result.as_numpy(name), expected.as_numpy(name), atol=1e-5)


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.zeros((1, 384, 384, 3), np.uint8), "pixels must have shape [192, 192, 3], not [384, 384, 3]"),
        (np.zeros((1, 192, 191, 3), np.uint8), "pixels must have shape [192, 192, 3], not [192, 191, 3]"),
        (np.zeros((1, 0, 0, 3), np.uint8), "pixels must have shape [192, 192, 3], not [0, 0, 3]"),
        (np.zeros((1, 3, 192, 192), np.uint8), "unexpected shape for input 'pixels'"),
        (np.zeros((1, 192, 192, 3), np.float32), "data-type is 'FP32', but"),
    ],
    ids=["another size", "no square", "nothing", "channels first", "another type"],
)
def test_wrong_pixels_are_refused(triton: InferenceServerClient, pixels: npt.NDArray[Any], sentence: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, "caption_pixels", pixels=pixels)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert sentence in caught.value.message()
    assert "\n" not in caught.value.message()


def test_they_go_through_preprocess(server: TritonServer, triton: InferenceServerClient) -> None:
    """Only the queue of preprocess is bounded."""
    before = server.metrics().inferences
    infer(triton, "caption_pixels", pixels=np.full((3, IMAGE_SIZE, IMAGE_SIZE, 3), 77, np.uint8))
    wait_until(
        lambda: all(server.metrics().inferences[step] > before[step] for step in ("preprocess", "encoder", "decoder"))
    )


def test_a_request_that_claims_to_have_no_rows_spoils_no_other(server: TritonServer) -> None:
    """Triton 2.51 lets it through, as a batch of 192."""

    def ask(stub: Any, number: int, rows: int) -> str:
        request = service_pb2.ModelInferRequest(model_name="caption_pixels")
        request.inputs.add(name="pixels", datatype="UINT8", shape=[rows, IMAGE_SIZE, IMAGE_SIZE, 3])
        request.raw_input_contents.append(bytes([number]) * (IMAGE_SIZE**2 * 3))
        try:
            return str(stub.ModelInfer(request, timeout=60).model_name)
        except grpc.RpcError as error:
            return str(error)

    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel, ThreadPoolExecutor(40) as pool:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        rows = [0 if number % 5 == 0 else 1 for number in range(40)]
        answers = list(pool.map(partial(ask, stub), range(40), rows))
    assert [answer for answer, row in zip(answers, rows, strict=True) if row] == ["caption_pixels"] * sum(rows)
