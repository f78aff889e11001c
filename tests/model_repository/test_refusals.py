# SPDX-License-Identifier: Apache-2.0
"""What is refused before any work, on every route: names that no model reads, and options out of range."""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from blipstream.server.triton import TritonServer
from tests.support.triton_requests import Streams, caption, infer, post, refusal, tensor, words

PIXELS = np.zeros((1, 192, 192, 3), np.uint8)
EMBEDS = np.zeros((1, 145, 192), np.float16)
INPUTS: dict[str, dict[str, npt.NDArray[Any]]] = {
    "caption_pixels": {"pixels": PIXELS},
    "encoder": {"pixels": PIXELS},
    "decoder": {"image_embeds": EMBEDS},
}


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="module")
def url(images: list[bytes]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(images[0]).decode()


@pytest.mark.parametrize("route", ["caption/generate", "caption_stream/generate", "caption_stream/generate_stream"])
@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"max_new_tokens": 3}, "there is no input 'max_new_tokens': did you mean max_tokens?"),
        ({"num_beam": 3}, "there is no input 'num_beam': did you mean num_beams?"),
        ({"parameters": {"min_length": 3}}, "there is no input 'min_length': did you mean min_tokens?"),
        ({"stream": True}, "there is no input 'stream': there are image, resize_mode, prompt, "),
        ({"timeout": 3}, "there is no input 'timeout': there are image, resize_mode, prompt, "),
    ],
)
def test_an_unknown_name_in_json(
    server: TritonServer, url: str, route: str, names: dict[str, Any], sentence: str
) -> None:
    status, answer = post(server, route, {"image": url} | names)
    assert (status, sentence in answer) == (400, True), answer


def test_a_known_name_wherever_triton_takes_it(server: TritonServer, url: str) -> None:
    for names in ({"max_tokens": 2, "id": "mine"}, {"parameters": {"max_tokens": 2}}):
        status, answer = post(server, "caption/generate", {"image": url} | names)
        assert (status, json.loads(answer)["num_tokens"]) == (200, 2)


@pytest.mark.parametrize("model", ["caption", "caption_pixels", "preprocess", "encoder", "decoder"])
def test_a_parameter_of_a_request(
    server: TritonServer, triton: InferenceServerClient, images: list[bytes], url: str, model: str
) -> None:
    inputs = INPUTS.get(model, {"image": words(images[0])})
    tensors = [tensor(name, array) for name, array in inputs.items()]
    for name in ("colour", "max_tokens"):
        with pytest.raises(InferenceServerException) as caught:
            triton.infer(model, tensors, parameters={name: 3})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert name in caught.value.message()
    if "image" in inputs:
        image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [url]}
        status, answer = post(server, f"{model}/infer", {"inputs": [image], "parameters": {"max_tokens": 3}})
        wanted = "max_tokens must be an input of the request, and not one of its parameters: send a tensor"
        assert (status, wanted in answer) == (400, True), answer


def test_fields_that_triton_itself_reads_are_not_parameters(triton: InferenceServerClient, images: list[bytes]) -> None:
    of_triton = {"request_id": "mine", "sequence_id": 5, "sequence_start": True, "priority": 1, "timeout": 60_000_000}
    result = triton.infer("caption", [tensor("image", words(images[0]))], **of_triton)
    assert result.as_numpy("caption").shape == (1, 1)


def test_a_parameter_of_a_stream(streams: Streams, images: list[bytes]) -> None:
    streams.ask(images[0], {}, parameters={"num_return_sequences": 3})
    with pytest.raises(InferenceServerException, match="no input 'num_return_sequences': did you mean num_captions"):
        streams.answer()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": np.array([[99]], np.int32)},
        {"do_sample": np.array([[True]]), "top_p": np.array([[1.5]], np.float32)},
        {"prompt": words(b"\xff")},
    ],
)
def test_no_stage_works_for_options_out_of_range(
    server: TritonServer, triton: InferenceServerClient, images: list[bytes], options: dict[str, npt.NDArray[Any]]
) -> None:
    before = server.metrics().inferences
    refusal(triton, image=words(images[0]), **options)
    refusal(triton, "caption_pixels", pixels=PIXELS, **options)
    caption(triton, images[0] + os.urandom(8))  # by then, refused requests that went on would have been encoded
    after = server.metrics().inferences
    assert [after[model] - before[model] for model in ("preprocess", "encoder")] == [1, 1]


def test_the_limits_are_allowed_as_people_write_them(triton: InferenceServerClient, images: list[bytes]) -> None:
    """FP32 has no 0.01, only a number a little below it."""
    limit = np.array([[0.01]], np.float32)
    infer(triton, image=words(images[0]), do_sample=np.array([[True]]), temperature=limit)
    assert "between 0.01 and 100, not 0.009999999" in refusal(
        triton, image=words(images[0]), do_sample=np.array([[True]]), temperature=np.nextafter(limit, np.float32(0))
    )
