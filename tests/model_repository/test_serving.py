# SPDX-License-Identifier: Apache-2.0
"""A running Triton, seen through tritonclient alone."""

import json
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from tritonclient.grpc import InferenceServerClient

from blipstream.decoding import load_engine
from blipstream.images.pixels import load_pixels
from blipstream.options import DecodingOptions
from blipstream.server.triton import TritonServer
from blipstream.vision.openvino import OpenVINOEncoder
from tests.conftest import SAMPLES
from tests.support.bad_images import BAD_IMAGES
from tests.support.triton_requests import caption, infer, refusal, words


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="module")
def good_image(samples: dict[str, str]) -> bytes:
    return (SAMPLES / next(iter(samples))).read_bytes()


def test_captions_equal_the_engines(
    triton: InferenceServerClient, artifacts: Path, scene_images: list[Image.Image]
) -> None:
    """All requests are sent at once, and Triton batches them as it likes."""
    encoder = OpenVINOEncoder(artifacts / "encoder/1/openvino")
    engine = load_engine(artifacts / "decoder/1/artifact")
    images = []
    for scene in scene_images[:64]:
        scene.save(file := BytesIO(), "PNG")
        images.append(file.getvalue())
    pixels = np.stack([load_pixels(image, 192) for image in images])
    embeds = torch.from_numpy(encoder.encode(pixels)).half()
    requests = [engine.request(embed, DecodingOptions()) for embed in embeds]
    engine.generate(requests)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda image: infer(triton, image=words(image)), images))
    for result, request in zip(results, requests, strict=True):
        (expected,) = request.captions
        assert result.as_numpy("caption")[0, 0].decode() == expected.text
        assert result.as_numpy("num_tokens")[0, 0] == expected.num_tokens
        assert result.as_numpy("score")[0, 0] == pytest.approx(expected.score, abs=0.1)  # bf16, another batch
    statistics = triton.get_inference_statistics("decoder", as_json=True)["model_stats"][0]
    assert int(statistics["execution_count"]) < int(statistics["inference_count"]), "nothing was batched"


def test_samples(triton: InferenceServerClient, samples: dict[str, str]) -> None:
    assert {name: caption(triton, (SAMPLES / name).read_bytes()) for name in samples} == samples


def test_an_option_does_not_stand_for_the_image(triton: InferenceServerClient) -> None:
    """Triton only counts the inputs."""
    for modes in (words(b"stretch"), words(b"stretch", b"zoom")):
        assert refusal(triton, "preprocess", resize_mode=modes).startswith("[invalid_input] image must be given")
    assert "image_embeds must be given" in refusal(triton, "decoder", prompt=words(b"two"))


def test_options(triton: InferenceServerClient, good_image: bytes) -> None:
    whole = caption(triton, good_image)
    assert caption(triton, good_image, max_tokens=np.array([[2]], np.int32)) == " ".join(whole.split()[:2])
    assert caption(triton, good_image, prompt=words(b"two")).startswith("two ")
    result = infer(triton, image=words(good_image), min_tokens=np.array([[25]], np.int32))
    assert result.as_numpy("num_tokens")[0, 0] > 25


def test_beam_search(triton: InferenceServerClient, good_image: bytes) -> None:
    beams = {"num_beams": np.array([[4]], np.int32), "num_captions": np.array([[3]], np.int32)}
    result = infer(triton, image=words(good_image), **beams)
    assert result.as_numpy("caption").shape == (1, 3)
    assert result.as_numpy("caption")[0, 0].decode() == caption(triton, good_image)
    scores, counts = result.as_numpy("score")[0], result.as_numpy("num_tokens")[0]
    assert (np.diff(scores) <= 0).all()
    assert result.as_numpy("token_scores").shape == (1, 3, counts.max())
    np.testing.assert_allclose(result.as_numpy("token_scores")[0].sum(1) / counts, scores, rtol=1e-4)


def test_sampling(triton: InferenceServerClient, good_image: bytes) -> None:
    def sample(seed: int) -> list[bytes]:
        options = {
            "do_sample": np.array([[True]]),
            "temperature": np.array([[9.0]], np.float32),
            "num_captions": np.array([[2]], np.int32),
            "seed": np.array([[seed]], np.int64),
        }
        captions: list[bytes] = infer(triton, image=words(good_image), **options).as_numpy("caption")[0].tolist()
        return captions

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_strategies_share_a_batch(triton: InferenceServerClient, samples: dict[str, str]) -> None:
    images = [(SAMPLES / name).read_bytes() + b"shared" for name in samples]

    def ask(i: int) -> str:
        options = {"num_beams": np.array([[1 + i % 4]], np.int32)} if i % 4 else {}
        return caption(triton, images[i % len(images)], **options)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == list(samples.values()) * 8


def test_several_images_in_one_request(triton: InferenceServerClient, samples: dict[str, str]) -> None:
    images = words(*((SAMPLES / name).read_bytes() for name in samples))
    captions = infer(triton, image=images).as_numpy("caption")
    assert [row[0].decode() for row in captions] == list(samples.values())
    limits = np.arange(1, len(samples) + 1, dtype=np.int32)[:, None]
    result = infer(triton, image=images, max_tokens=limits)
    assert (result.as_numpy("num_tokens") <= limits).all()


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(triton: InferenceServerClient, name: str) -> None:
    bad = BAD_IMAGES[name]
    assert re.search(bad.message, refusal(triton, image=words(bad.data)))


def bad_requests() -> dict[str, tuple[str, dict[str, npt.NDArray[Any]], str]]:
    """Model, inputs and sentence; an `image` is added where the model is `caption`."""
    one = np.array([[1]], np.int32)
    return {
        "unknown resize mode": ("caption", {"resize_mode": words(b"zoom")}, "resize_mode must be one of stretch, cen"),
        "resize mode that is no text": ("caption", {"resize_mode": words(b"\xff")}, "resize_mode must be one of"),
        "no tokens": ("caption", {"max_tokens": 0 * one}, "max_tokens must be at least 1, not 0"),
        "too many tokens": ("caption", {"max_tokens": 99 * one}, "fit 64 positions, but the prompt takes at least 1"),
        "minimum above maximum": (
            "caption",
            {"max_tokens": 3 * one, "min_tokens": 4 * one},
            "min_tokens must be between 0 and 3 .max_tokens., not 4",
        ),
        "beams and sampling": (
            "caption",
            {"num_beams": 2 * one, "do_sample": np.array([[True]])},
            "do_sample and num_beams above 1 exclude each other",
        ),
        "a penalty that is no number": (
            "caption",
            {"repetition_penalty": np.array([[np.nan]], np.float32)},
            "repetition_penalty must be between 0.01 and 100, not nan",
        ),
        "prompt that is no text": ("caption", {"prompt": words(b"\xff")}, "prompt must be UTF-8 text"),
        "prompt too long": (
            "caption",
            {"prompt": words(b"a " * 100)},
            "must fit 64 positions, but the prompt takes 101",
        ),
        "option of the wrong type": ("caption", {"max_tokens": one.astype(np.int64)}, "data-type is 'INT64', but"),
        "option of the wrong shape": ("caption", {"max_tokens": np.array([[1, 2]], np.int32)}, "unexpected shape"),
        "image of the wrong type": ("preprocess", {"image": one}, "data-type is 'INT32', but"),
        "unknown input": ("caption", {"max_token": one}, "unexpected inference input 'max_token'"),
        "pixels of another size": (
            "encoder",
            {"pixels": np.zeros((1, 384, 384, 3), np.uint8)},
            r"pixels must have shape \[192, 192, 3\], not \[384, 384, 3\]",
        ),
        "embeddings of another model": (
            "decoder",
            {"image_embeds": np.zeros((1, 577, 768), np.float16)},
            r"image_embeds must have shape \[145, 192\], not \[577, 768\]",
        ),
    }


@pytest.mark.parametrize("name", bad_requests())
def test_bad_requests(triton: InferenceServerClient, good_image: bytes, name: str) -> None:
    model, inputs, sentence = bad_requests()[name]
    if model == "caption":
        inputs = {"image": words(good_image), **inputs}
    assert re.search(sentence, refusal(triton, model, **inputs))


def test_no_image(triton: InferenceServerClient) -> None:
    assert "expected" in refusal(triton, max_tokens=np.array([[1]], np.int32))


def test_a_bad_image_harms_no_batch_mate(triton: InferenceServerClient, samples: dict[str, str]) -> None:
    """Good and bad requests at once: each gets its own response."""
    name, expected = next(iter(samples.items()))
    image = (SAMPLES / name).read_bytes()

    def ask(i: int) -> str:
        match i % 4:
            case 0:
                return refusal(triton, image=words(image[: 100 + i]))
            case 1:
                return refusal(triton, image=words(image), max_tokens=np.array([[-i]], np.int32))
            case _:
                # bytes after the end of a JPEG file are ignored
                return caption(triton, image + bytes([i]))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(64)))
    for i, answer in enumerate(answers):
        match i % 4:
            case 0:
                assert "image must be a whole JPEG file" in answer
            case 1:
                assert answer == f"max_tokens must be at least 1, not {-i}" or f"not {-i}" in answer
            case _:
                assert answer == expected


def test_one_bad_image_refuses_its_request(triton: InferenceServerClient, good_image: bytes) -> None:
    assert "image 2 of 2 must be a JPEG" in refusal(triton, image=words(good_image, b"nonsense"))


def get(server: TritonServer, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.http_url}/{path}", timeout=10) as response:
        body: dict[str, Any] = json.load(response)
    return body


def test_the_chosen_config_serves(server: TritonServer) -> None:
    """Triton silently falls back to config.pbtxt if there is no config of the name in --model-config-name."""
    for model in ("encoder", "decoder"):
        config = get(server, f"v2/models/{model}/config")
        assert config["backend"] == "python"
        assert {group["kind"] for group in config["instance_group"]} == {"KIND_CPU"}


def test_it_still_captions(triton: InferenceServerClient, samples: dict[str, str]) -> None:
    name, expected = next(iter(samples.items()))
    assert caption(triton, (SAMPLES / name).read_bytes() + b"still") == expected
