# SPDX-License-Identifier: Apache-2.0
"""Matching and embeddings through the real server, beside a captioner."""

import json
import shutil
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient

from blipstream.config import CheckpointConfig
from blipstream.server.canary import check_first_answers
from blipstream.server.network import get
from blipstream.server.supervisor import Supervisor
from blipstream.server.triton import TritonServer
from blipstream_build.build import build
from tests.conftest import SAMPLES
from tests.support.retrieval import RetrievalReference, save_retrieval_checkpoint
from tests.support.triton_requests import caption, infer, post, refusal, words

# f16 between the encoder and the matcher rounds image_embeds; all else is f32
TOLERANCE = 1e-3
TEXTS = ["two whales", "a cat", "a dog above a door on a brown background", "a"]


@pytest.fixture(scope="module")
def triton(matching_server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(matching_server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return sorted(SAMPLES.glob("*.jpg"))


def rows(*texts: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.object_]]:
    return np.array([[text.encode() for text in row] for row in texts], np.object_)


def test_scores_equal_transformers(
    triton: InferenceServerClient, files: list[Path], retrieval_reference: RetrievalReference
) -> None:
    """Requests of many sizes at once: none depends on the others."""

    def scores(number: int) -> None:
        file, texts = files[number % len(files)], TEXTS[: 1 + number % len(TEXTS)]
        result = infer(triton, "match", image=words(file.read_bytes()), text=rows(texts))
        expected = retrieval_reference.score(Image.open(file), texts)._asdict()
        for name, theirs in expected.items():
            np.testing.assert_allclose(result.as_numpy(name), theirs.numpy()[None], rtol=0, atol=TOLERANCE)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(scores, range(16)))


def test_several_images_in_a_request(
    triton: InferenceServerClient, files: list[Path], retrieval_reference: RetrievalReference
) -> None:
    images = words(*(file.read_bytes() for file in files[:2]))
    logits = infer(triton, "match", image=images, text=rows(TEXTS[:2], TEXTS[2:])).as_numpy("logit")
    for file, row, texts in zip(files, logits, (TEXTS[:2], TEXTS[2:]), strict=False):
        expected = retrieval_reference.score(Image.open(file), texts).logit
        np.testing.assert_allclose(row, expected.numpy(), rtol=0, atol=TOLERANCE)


def test_embeddings_equal_transformers(
    triton: InferenceServerClient, files: list[Path], retrieval_reference: RetrievalReference
) -> None:
    result = infer(triton, "embed_image", image=words(files[0].read_bytes())).as_numpy("embedding")
    expected = retrieval_reference.embed_image(Image.open(files[0])).numpy()
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=1e-4)
    result = infer(triton, "embed_text", text=rows(TEXTS[:1])).as_numpy("embedding")
    np.testing.assert_allclose(result[0], retrieval_reference.embed_text(TEXTS[0]).numpy(), rtol=0, atol=1e-4)


def test_an_encoder_that_is_shared(f32_artifacts: Path, files: list[Path], tmp_path: Path) -> None:
    """Captions and matches come from one encoder, and there is no second one."""
    checkpoint = save_retrieval_checkpoint(tmp_path / "retrieval", own_vision=False)
    repository = shutil.copytree(f32_artifacts, tmp_path / "models")
    build(str(checkpoint), "f32", repository)
    reference = RetrievalReference(checkpoint)
    with (
        TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
        InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client,
    ):
        assert not client.is_model_ready("match_encoder")
        result = infer(client, "match", image=words(files[0].read_bytes()), text=rows(TEXTS))
        expected = reference.score(Image.open(files[0]), TEXTS).logit
        np.testing.assert_allclose(result.as_numpy("logit")[0], expected.numpy(), rtol=0, atol=TOLERANCE)
        assert caption(client, files[0].read_bytes())
    encoder = repository / "encoder/1/openvino"  # of another captioner, as if one had been built
    settings = CheckpointConfig.load(encoder)
    replace(settings, vision=replace(settings.vision, weights_hash="another")).save(encoder)
    said: list[str] = []
    server = TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0)
    with pytest.raises(KeyboardInterrupt):
        Supervisor(server, say=said.append).run(lambda: stop_if_it_captions(server, files[0]))
    (sentence,) = [each for each in said if "matching" in each]
    assert sentence.startswith("without matching: matching was built from retrieval@")
    assert sentence.endswith("now: build retrieval again")


def stop_if_it_captions(server: TritonServer, file: Path) -> None:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        assert not client.is_model_ready("match")
        assert caption(client, file.read_bytes())
    raise KeyboardInterrupt


def test_a_thousand_texts(triton: InferenceServerClient, files: list[Path]) -> None:
    texts = [f"two whales {number}" for number in range(1000)]
    with ThreadPoolExecutor(2) as executor:
        image = words(files[0].read_bytes())
        many = executor.submit(infer, triton, "match", image=image, text=rows(texts))
        one = executor.submit(infer, triton, "match", image=image, text=rows(texts[-1:]))
        logits = many.result().as_numpy("logit")
        assert logits.shape == (1, 1000)
        np.testing.assert_allclose(logits[:, -1:], one.result().as_numpy("logit"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (rows([""]), "[invalid_input] text is empty: send words"),
        (rows(["a", " "]), "[invalid_input] text 2 of 2 is empty: send words, or leave it out"),
        (np.zeros((1, 0), np.object_), "[invalid_input] text must have at least one text, and it has none"),
        (rows(["a " * 100]), "[invalid_input] text must have at most 62 tokens, not 100: shorten it, or set truncate"),
        (rows(["a"] * 1001), "[invalid_input] a request must have at most 1,000 texts, not 1,001: send several"),
        (rows(["киты"]), "[invalid_input] text must have a word that the model knows, and 'киты' is none"),
    ],
    ids=["empty", "blank", "none", "too long", "too many", "unknown"],
)
def test_texts_that_are_refused(
    triton: InferenceServerClient,
    files: list[Path],
    text: np.ndarray[tuple[int, ...], np.dtype[np.object_]],
    sentence: str,
) -> None:
    assert sentence in refusal(triton, "match", image=words(files[0].read_bytes()), text=text)


def test_texts_of_all_images_are_counted(triton: InferenceServerClient) -> None:
    """Before the images are loaded: these are none."""
    images, texts = words(*[b"no image"] * 11), rows(*[["a"] * 91] * 11)
    sentence = "[invalid_input] a request must have at most 1,000 texts, not 1,001: send several"
    assert sentence in refusal(triton, "match", image=images, text=texts)
    image_embeds = np.zeros((11, 145, 192), np.float16)
    assert sentence in refusal(triton, "matcher", image_embeds=image_embeds, text=texts)


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        ("match", {"text": "a", "num_beams": 3}, "no input 'num_beams': there are image, resize_mode, text, truncate"),
        ("match", {"text": "a", "truncat": True}, "there is no input 'truncat': did you mean truncate?"),
        ("embed_image", {"num_beams": 3}, "there is no input 'num_beams': there are image, resize_mode"),
        ("embed_text", {"text": "a", "num_beams": 3}, "there is no input 'num_beams': there are text, truncate"),
        ("embed_text", {"text": ["a", "b"]}, "text must be one text to be embedded, not 2: send several requests"),
    ],
)
def test_what_json_gets_wrong(
    matching_server: TritonServer, files: list[Path], model: str, body: dict[str, Any], sentence: str
) -> None:
    image = {} if model == "embed_text" else {"image": b64encode(files[0].read_bytes()).decode()}
    status, answer = post(matching_server, f"{model}/generate", image | body)
    assert (status, json.loads(answer)["error"].endswith(sentence)) == (400, True), answer


def test_truncate(triton: InferenceServerClient, files: list[Path]) -> None:
    image, cut = words(files[0].read_bytes()), np.array([[True]])
    longest = infer(triton, "match", image=image, text=rows(["a " * 62]))
    result = infer(triton, "match", image=image, text=rows(["a " * 100]), truncate=cut)
    np.testing.assert_allclose(result.as_numpy("logit"), longest.as_numpy("logit"), rtol=0, atol=1e-4)
    infer(triton, "embed_text", text=rows(["a " * 100]), truncate=cut)


def test_the_matcher_itself(triton: InferenceServerClient) -> None:
    """What it is asked without an ensemble."""
    image_embeds = np.zeros((1, 144, 192), np.float16)
    said = refusal(triton, "matcher", image_embeds=image_embeds, text=rows(["a"]))
    assert said.endswith("[invalid_input] image_embeds must have shape [145, 192], not [144, 192]")
    said = refusal(triton, "matcher", truncate=np.array([[True]]))
    assert said.endswith("[invalid_input] image_embeds or text must be given, and neither is: send one, or both")
    said = refusal(triton, "matcher", text=rows(["a", "b"]))
    assert said.endswith("[invalid_input] text must be one text to be embedded, not 2: send several requests")


def test_an_image_that_is_refused(triton: InferenceServerClient) -> None:
    assert "[invalid_image]" in refusal(triton, "match", image=words(b"no image"), text=rows(["a"]))


def test_captions_come_out_beside_it(triton: InferenceServerClient, files: list[Path], samples: dict[str, str]) -> None:
    result = infer(triton, "caption", image=words(files[0].read_bytes()))
    assert result.as_numpy("caption")[0, 0].decode() == samples[files[0].name]


def test_the_first_answers(matching_server: TritonServer) -> None:
    check_first_answers(matching_server)


def test_metrics(triton: InferenceServerClient, matching_server: TritonServer) -> None:
    infer(triton, "embed_text", text=rows(TEXTS[:1]))
    _, page = get(matching_server.local_host, matching_server.metrics_port, "/metrics", 10)
    assert 'blipstream_texts_total{model="matcher"}' in page
    assert matching_server.metrics().inferences["match"] >= 0
    assert matching_server.metrics().progress["matcher"] > 0
