# SPDX-License-Identifier: Apache-2.0
"""Explanations through a real Triton server."""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from blipstream.server.triton import TritonServer
from tests.support.triton_requests import infer, refusal, tensor, words

SIDE = 12  # patches, of the demo checkpoint


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="module")
def images(scene_images: list[Image.Image]) -> npt.NDArray[np.object_]:
    files = []
    for scene in scene_images[:4]:
        scene.save(file := BytesIO(), "JPEG")
        files.append([file.getvalue()])
    return np.array(files, np.object_)


@pytest.fixture(scope="module")
def image_embeds(triton: InferenceServerClient, images: npt.NDArray[np.object_]) -> npt.NDArray[np.float16]:
    pixels = infer(triton, "preprocess", image=images).as_numpy("pixels")
    embeds: npt.NDArray[np.float16] = infer(triton, "encoder", pixels=pixels).as_numpy("image_embeds")
    return embeds


def texts(row: npt.NDArray[np.object_]) -> list[str]:
    return [word.decode() for word in row]


def test_several_images(triton: InferenceServerClient, images: npt.NDArray[np.object_]) -> None:
    """Captions are as those of `caption`; shorter ones have empty words at the end, with zeros."""
    captions = infer(triton, "caption", image=images)
    explained = infer(triton, "explain", image=images)
    for name in ("caption", "num_tokens"):
        np.testing.assert_array_equal(explained.as_numpy(name), captions.as_numpy(name))
    most = max(len(caption.split()) for caption in texts(captions.as_numpy("caption")[:, 0]))
    assert explained.as_numpy("attention").shape == (len(images), most, SIDE, SIDE)
    for caption, row, maps in zip(
        captions.as_numpy("caption")[:, 0], explained.as_numpy("words"), explained.as_numpy("attention"), strict=True
    ):
        count = len(caption.split())
        assert texts(row) == caption.decode().split() + [""] * (most - count)
        np.testing.assert_allclose(maps.sum((1, 2)), [1] * count + [0] * (most - count), rtol=1e-5)


def test_a_given_caption(
    triton: InferenceServerClient, images: npt.NDArray[np.object_], image_embeds: npt.NDArray[np.float16]
) -> None:
    """It gets the score and the heatmaps that it gets when the model finds it."""
    found = infer(triton, "explain", image=images)
    given = infer(triton, "explain", image=images, given_caption=found.as_numpy("caption"))
    attended = infer(triton, "attention", image_embeds=image_embeds, caption=found.as_numpy("caption"))
    np.testing.assert_array_equal(given.as_numpy("caption"), found.as_numpy("caption"))
    np.testing.assert_array_equal(given.as_numpy("num_tokens"), found.as_numpy("num_tokens"))
    np.testing.assert_allclose(given.as_numpy("score"), found.as_numpy("score"), atol=0.05)  # perhaps in bf16
    for other in (given, attended):
        np.testing.assert_array_equal(other.as_numpy("words"), found.as_numpy("words"))
        np.testing.assert_allclose(other.as_numpy("attention"), found.as_numpy("attention"), atol=2e-3)
    assert [output.name for output in attended.get_response().outputs] in (
        ["words", "attention"],
        ["attention", "words"],
    )


@pytest.mark.parametrize("method", ["attention", "rollout", "gradient"])
def test_options(triton: InferenceServerClient, images: npt.NDArray[np.object_], method: str) -> None:
    one = np.ones((1, 1), np.int32)
    plain = infer(triton, "explain", image=images[:1]).as_numpy("attention")
    other = infer(
        triton,
        "explain",
        image=images[:1],
        num_beams=2 * one,
        num_captions=2 * one,
        caption_index=one,
        layer=one,
        head=0 * one,
        method=words(method.encode()),
    )
    assert texts(other.as_numpy("words")[0]) == other.as_numpy("caption")[0, 1].decode().split()
    assert other.as_numpy("attention").shape[2:] == plain.shape[2:]
    np.testing.assert_allclose(other.as_numpy("attention").sum((2, 3)), 1, rtol=1e-4)


def test_a_caption_without_words(triton: InferenceServerClient, images: npt.NDArray[np.object_]) -> None:
    whole = infer(triton, "caption", image=images[:1]).as_numpy("caption")
    nothing = infer(triton, "explain", image=images[:1], prompt=whole, include_prompt=np.array([[False]]))
    assert nothing.as_numpy("caption")[0, 0] == b""
    assert nothing.as_numpy("words").shape == (1, 0)
    assert nothing.as_numpy("attention").shape == (1, 0, SIDE, SIDE)


def test_only_who_asks_gets_heatmaps(triton: InferenceServerClient, image_embeds: npt.NDArray[np.float16]) -> None:
    inputs = [tensor("image_embeds", image_embeds[:1])]
    for wanted in (["caption"], ["caption", "words"], ["words", "attention"]):
        result = triton.infer("decoder", inputs, outputs=[InferRequestedOutput(name) for name in wanted])
        assert {output.name for output in result.get_response().outputs} == set(wanted)


REFUSED = {
    "layer must be between 0 and 2, or -1 for the mean of all, not 3": {"layer": np.array([[3]], np.int32)},
    "head must be between 0 and 3, or -1 for the mean of all, not 4": {"head": np.array([[4]], np.int32)},
    "method must be one of attention, rollout, gradient, not 'saliency'": {"method": words(b"saliency")},
    "caption_index must be between 0 and 9, not -1": {"caption_index": np.array([[-1]], np.int32)},
    "caption_index must be below num_captions, which is 1, not 1": {"caption_index": np.array([[1]], np.int32)},
    "a given caption must have a word, and this one has none": {"given_caption": words(b" ")},
    "a given caption must have at most 4,096 characters, not 5,000": {"given_caption": words(b"a cat" * 1000)},
    "a given caption must have at most 63 tokens, not 64: shorten it": {"given_caption": words(b"cat " * 64)},
    "a given caption must be of words that the model knows, and '猫' is none": {
        "given_caption": words("a 猫".encode())
    },
    "given_caption must be UTF-8 text": {"given_caption": words(b"a \xff")},
    "max_tokens has no meaning beside a given caption": {
        "given_caption": words(b"a cat"),
        "max_tokens": np.array([[5]], np.int32),
    },
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(triton: InferenceServerClient, images: npt.NDArray[np.object_], sentence: str) -> None:
    assert sentence in refusal(triton, "explain", image=images[:1], **REFUSED[sentence])


def test_it_ends_when_its_time_is_up(triton: InferenceServerClient, image_embeds: npt.NDArray[np.float16]) -> None:
    """Its client has gone, or has stopped listening, and others wait."""
    inputs = {
        "image_embeds": np.repeat(image_embeds[:1], 10, 0),
        "given_caption": words(*[b"cat " * 48] * 10),
        "method": words(*[b"gradient"] * 10),
    }
    with pytest.raises(InferenceServerException, match="Request timeout expired"):
        triton.infer("decoder", [tensor(*each) for each in inputs.items()], timeout=200_000)  # microseconds
