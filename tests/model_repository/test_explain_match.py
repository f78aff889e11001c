# SPDX-License-Identifier: Apache-2.0
"""Where the words of a text meet the image, through the real server."""

import json
from base64 import b64encode
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient

from blipstream.server.triton import TritonServer
from tests.conftest import SAMPLES
from tests.support.retrieval import RetrievalReference
from tests.support.triton_requests import infer, post, refusal, words

TOLERANCE = 1e-3  # f16 between the encoder and the matcher rounds image_embeds
FILES = sorted(SAMPLES.glob("*.jpg"))[:2]
TEXTS = [b"two butterflies on a red background", b"a book"]
IMAGES = words(*(file.read_bytes() for file in FILES))


@pytest.fixture(scope="module")
def triton(matching_server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(matching_server.grpc_url.removeprefix("grpc://")) as client:
        yield client


def test_equals_transformers(triton: InferenceServerClient, retrieval_reference: RetrievalReference) -> None:
    """Two images in one request, of which the second has fewer words."""
    result = infer(triton, "explain_match", image=IMAGES, text=words(*TEXTS), layer=np.array([[0], [-1]], np.int32))
    found, attention = result.as_numpy("words"), result.as_numpy("attention")
    assert found.shape == (2, 6)
    assert attention.shape == (2, 6, 12, 12)
    for row, (file, text, layers) in enumerate(zip(FILES, TEXTS, (slice(1), slice(3)), strict=True)):
        theirs = retrieval_reference.maps(retrieval_reference.image_embeds(Image.open(file)), text.decode())
        maps = theirs.layers.mean(1)[layers].sum(0)
        expected = (maps / maps.sum((1, 2), keepdim=True)).numpy()
        count = len(theirs.words)
        assert [word.decode() for word in found[row]] == theirs.words + [""] * (6 - count)
        np.testing.assert_allclose(attention[row, :count], expected, rtol=0, atol=TOLERANCE)
        assert not attention[row, count:].any()
        np.testing.assert_allclose(result.as_numpy("logit")[row], [theirs.logit], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(result.as_numpy("match")[row], [1 / (1 + np.exp(-theirs.logit))], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("texts", "options", "sentence"),
    [
        ([b" "], {}, "text is empty: send words"),
        (["two киты".encode()], {}, "text must be of words that the model knows, and 'киты' is none"),
        ([b"a " * 49], {}, "text must have at most 48 tokens, not 49: shorten it"),
        (
            [b"a " * 48] * 11,
            {},
            "a request must have at most 480 tokens in all texts that it explains, not 528: send several",
        ),
        ([b"a"], {"layer": 2}, "of this model's 3 layers, the last has no gradients at words"),
        ([b"a"], {"head": 4}, "this model's text encoder has 4"),
    ],
    ids=["blank", "unknown word", "too long", "too many", "layer", "head"],
)
def test_refusals(triton: InferenceServerClient, texts: list[bytes], options: dict[str, int], sentence: str) -> None:
    images = words(*[FILES[0].read_bytes()] * len(texts))
    more = {name: np.array([[value]], np.int32) for name, value in options.items()}
    said = refusal(triton, "explain_match", image=images, text=words(*texts), **more)
    assert "[invalid_input]" in said
    assert said.endswith(sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"text": "a", "leyer": 1}, "there is no input 'leyer': did you mean layer?"),
        ({"text": "a", "num_beams": 3}, "there are image, resize_mode, text, layer, head"),
    ],
)
def test_what_json_gets_wrong(matching_server: TritonServer, body: dict[str, object], sentence: str) -> None:
    image = b64encode(FILES[0].read_bytes()).decode()
    status, answer = post(matching_server, "explain_match/generate", body | {"image": image})
    assert status == 400
    assert json.loads(answer)["error"].endswith(sentence)


def test_json(matching_server: TritonServer) -> None:
    image = b64encode(FILES[0].read_bytes()).decode()
    status, answer = post(matching_server, "explain_match/generate", {"image": image, "text": "a book"})
    assert status == 200
    assert json.loads(answer)["words"] == ["a", "book"]


def test_the_matcher_itself(triton: InferenceServerClient) -> None:
    said = refusal(triton, "matcher", explained_text=words(b"a"))
    assert said.endswith("[invalid_input] image_embeds or text must be given, and neither is: send one, or both")
