# SPDX-License-Identifier: Apache-2.0
"""Captions that matching puts in order, with both of the demo's checkpoints in a real server."""

import json
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from blipstream.options import OptionDefaults
from blipstream.server.triton import TritonServer
from blipstream_build.build import build
from tests.conftest import DEMO_RETRIEVAL_CHECKPOINT, SAMPLES
from tests.support.backpressure_file import backpressure_file, read_counts
from tests.support.retrieval import RetrievalReference, save_retrieval_checkpoint
from tests.support.triton_requests import infer, inputs, refusal, words

TOLERANCE = 1e-3  # of logits in batches of other sizes
F16_TOLERANCE = 5e-3  # against transformers: f16 between the models rounds image_embeds, and logits reach 10
SAMPLED = {"do_sample": True, "temperature": 3.0, "rerank": 8, "num_captions": 8}
OF_CAPTIONS = ("caption", "score", "num_tokens", "token_scores", "match", "logit")
OF_DROPPED = ("dropped", "dropped_match")

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def triton(demo_server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(demo_server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return sorted(SAMPLES.glob("*.jpg"))


def rerank(triton: InferenceServerClient, file: Path, options: dict[str, Any]) -> Arrays:
    result = triton.infer("rerank", inputs(file.read_bytes(), options), client_timeout=120)
    return {name: result.as_numpy(name) for name in OF_CAPTIONS + OF_DROPPED}


def texts(row: npt.NDArray[np.object_]) -> list[str]:
    return [text.decode() for text in row]


def test_the_order_is_that_of_matching(triton: InferenceServerClient, files: list[Path]) -> None:
    """By the model `match`, and by transformers with [ENC] first; requests of many options at once."""
    reference = RetrievalReference(DEMO_RETRIEVAL_CHECKPOINT)

    def compare(seed: int) -> int:
        file = files[seed % len(files)]
        ranked = rerank(triton, file, SAMPLED | {"seed": seed})
        captions = texts(ranked["caption"][0])
        drawn = triton.infer("caption", inputs(file.read_bytes(), CAPTION_OPTIONS | {"seed": seed})).as_numpy("caption")
        assert sorted(captions) == sorted({text for text in texts(drawn[0]) if text})
        scores = infer(triton, "match", image=words(file.read_bytes()), text=ranked["caption"])
        np.testing.assert_allclose(ranked["logit"], scores.as_numpy("logit"), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(ranked["match"], scores.as_numpy("match"), rtol=0, atol=TOLERANCE)
        expected = reference.score(Image.open(file), captions).logit.numpy()
        np.testing.assert_allclose(ranked["logit"][0], expected, rtol=0, atol=F16_TOLERANCE)
        assert (np.diff(expected) <= 2 * F16_TOLERANCE).all()
        return len(captions)

    with ThreadPoolExecutor(4) as executor:
        counts = list(executor.map(compare, range(12)))
    assert max(counts) > 3


CAPTION_OPTIONS = {name: value for name, value in SAMPLED.items() if name != "rerank"}


def test_what_belongs_to_a_caption_comes_with_it(triton: InferenceServerClient, files: list[Path]) -> None:
    ranked = rerank(triton, files[0], SAMPLED)
    drawn = triton.infer("caption", inputs(files[0].read_bytes(), CAPTION_OPTIONS))
    places = [texts(drawn.as_numpy("caption")[0]).index(caption) for caption in texts(ranked["caption"][0])]
    longest = ranked["token_scores"].shape[2]
    for name in ("score", "num_tokens"):
        np.testing.assert_array_equal(ranked[name][0], drawn.as_numpy(name)[0, places])
    np.testing.assert_array_equal(ranked["token_scores"][0], drawn.as_numpy("token_scores")[0, places, :longest])
    assert longest == ranked["num_tokens"].max()


def test_the_same_seed_gives_the_same(triton: InferenceServerClient, files: list[Path]) -> None:
    first, again = (rerank(triton, files[0], SAMPLED | {"seed": 7}) for _ in range(2))
    assert first["caption"].tolist() == again["caption"].tolist()
    np.testing.assert_allclose(first["logit"], again["logit"], rtol=0, atol=1e-4)


def test_captions_that_match_too_little_are_dropped(triton: InferenceServerClient, files: list[Path]) -> None:
    everything = rerank(triton, files[0], SAMPLED)
    some = rerank(triton, files[0], SAMPLED | {"min_match": 0.5})
    kept = int((everything["match"] >= 0.5).sum())
    assert 0 < kept < everything["match"].size
    assert texts(some["caption"][0]) == texts(everything["caption"][0])[:kept]
    assert texts(some["dropped"][0]) == texts(everything["caption"][0])[kept:]
    np.testing.assert_allclose(some["dropped_match"], everything["match"][:, kept:], rtol=0, atol=1e-4)
    none = rerank(triton, files[0], SAMPLED | {"min_match": 1.0})
    assert {none[name].shape[:2] for name in OF_CAPTIONS} == {(1, 0)}
    assert texts(none["dropped"][0]) == texts(everything["caption"][0])


def test_one_comes_back_unless_more_are_asked_for(triton: InferenceServerClient, files: list[Path]) -> None:
    options = {"num_beams": 4, "rerank": 4}
    assert rerank(triton, files[0], options)["caption"].shape == (1, 1)
    assert rerank(triton, files[0], options | {"num_captions": 3})["caption"].shape == (1, 3)
    without = rerank(triton, files[0], {"num_beams": 4, "num_captions": 3, "min_match": 0.0})
    assert without["caption"].shape == (1, 3)  # as many are generated as come back
    (greedy,) = rerank(triton, files[0], {})["caption"][0]
    assert greedy == infer(triton, image=words(files[0].read_bytes())).as_numpy("caption")[0, 0]


def test_several_images(triton: InferenceServerClient, files: list[Path]) -> None:
    """What an image has less than others is empty, and 0. A full batch has as many images as Triton takes."""
    images = [files[number % len(files)].read_bytes() for number in range(64)]
    kinds = {"do_sample": np.bool_, "temperature": np.float32, "rerank": np.int32, "num_captions": np.int32}
    options = {name: np.full((64, 1), value, kinds[name]) for name, value in SAMPLED.items()}
    options |= {"seed": np.arange(64)[:, None], "min_match": np.where(np.arange(64) % 2, 0.5, 1)[:, None]}
    options["min_match"] = options["min_match"].astype(np.float32)
    result = infer(triton, "rerank", image=words(*images), **options)
    ranked = {name: result.as_numpy(name) for name in OF_CAPTIONS + OF_DROPPED}
    assert ranked["num_tokens"].max(1).min() == 0  # of this image, nothing is left
    assert 1 <= ranked["caption"].shape[1] <= 8
    for number in (0, 1, 62, 63):
        min_match = float(options["min_match"][number, 0])
        alone = rerank(triton, files[number % 8], SAMPLED | {"seed": number, "min_match": min_match})
        for names in (OF_CAPTIONS[:1], OF_DROPPED[:1]):
            count = alone[names[0]].shape[1]
            row = texts(ranked[names[0]][number])
            assert row == texts(alone[names[0]][0]) + [""] * (len(row) - count)
        assert not ranked["num_tokens"][number, alone["caption"].shape[1] :].any()


def test_a_caption_without_words_fails_nothing(triton: InferenceServerClient, files: list[Path]) -> None:
    options = {"prompt": "a book on a purple background", "include_prompt": False, "max_tokens": 1}
    ranked = rerank(triton, files[0], options)
    assert ranked["caption"].shape == (1, 0)
    assert (texts(ranked["dropped"][0]), ranked["dropped_match"].tolist()) == ([""], [[0]])


def test_prompts(triton: InferenceServerClient, files: list[Path]) -> None:
    """What is compared is what comes back."""
    for include in (True, False):
        options = {"prompt": "a book", "include_prompt": include, "num_beams": 4, "num_captions": 2, "rerank": 4}
        ranked = rerank(triton, files[0], options)
        assert [text.startswith("a book") for text in texts(ranked["caption"][0])] == [include] * 2
        scores = infer(triton, "match", image=words(files[0].read_bytes()), text=ranked["caption"])
        np.testing.assert_allclose(ranked["logit"], scores.as_numpy("logit"), rtol=0, atol=TOLERANCE)


def test_a_caption_that_is_too_long_for_matching_is_cut(triton: InferenceServerClient, files: list[Path]) -> None:
    long = rerank(triton, files[0], {"prompt": "a " * 58, "min_tokens": 6, "max_tokens": 6})
    (caption,) = texts(long["caption"][0])
    image, cut = words(files[0].read_bytes()), np.array([[True]])
    assert "at most 62 tokens" in refusal(triton, "match", image=image, text=long["caption"])
    scores = infer(triton, "match", image=image, text=words(caption.encode()), truncate=cut)
    np.testing.assert_allclose(long["logit"], scores.as_numpy("logit"), rtol=0, atol=TOLERANCE)


def one(value: Any, dtype: Any) -> npt.NDArray[Any]:
    return np.array([[value]], dtype)


REFUSED = {
    "rerank must be between 1 and 10, not 0": {"rerank": one(0, np.int32)},
    "rerank must be between 1 and 10, not -1": {"rerank": one(-1, np.int32)},
    "rerank must be between 1 and 10, not 1000000": {"rerank": one(10**6, np.int32)},
    "rerank must be at most num_beams, which is 1, not 8: raise num_beams, or set do_sample": {
        "rerank": one(8, np.int32)
    },
    "num_captions must be between 1 and 1 (rerank), not 2": {
        "rerank": one(1, np.int32),
        "num_captions": one(2, np.int32),
    },
    "min_match must be between 0 and 1, not nan": {"min_match": one(np.nan, np.float32)},
    "min_match must be between 0 and 1, not 2.0": {"min_match": one(2, np.float32)},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(triton: InferenceServerClient, files: list[Path], sentence: str) -> None:
    said = refusal(triton, "rerank", image=words(files[0].read_bytes()), **REFUSED[sentence])
    assert said.endswith(f"[invalid_input] {sentence}")


@pytest.mark.parametrize("option", ["rerank", "min_match"])
def test_caption_says_whose_option_it_is(demo_server: TritonServer, files: list[Path], option: str) -> None:
    body = json.dumps({"image": b64encode(files[0].read_bytes()).decode(), option: 1}).encode()

    def ask(model: str) -> bytes:
        url = f"{demo_server.http_url}/v2/models/{model}/generate"
        with urlopen(Request(url, body, {"Content-Type": "application/json"})) as answer:
            said: bytes = answer.read()
        return said

    with pytest.raises(HTTPError) as refused:
        ask("caption")
    with refused.value as answer:
        expected = f"{option} must be an input of the model rerank: send it there, as a tensor"
        assert json.loads(answer.read())["error"].endswith(expected)
    assert "caption" in json.loads(ask("rerank"))


def test_the_matcher_itself(triton: InferenceServerClient) -> None:
    """What it is asked without an ensemble."""
    given = {"image_embeds": np.zeros((1, 145, 192), np.float16), "text": words(b"a cat"), "score": one(0, np.float32)}
    said = refusal(triton, "matcher", **given)
    assert said.endswith("[invalid_input] num_tokens must be given with the captions: send all outputs of a decoder")
    two = {"num_tokens": np.zeros((1, 2), np.int32), "token_scores": np.zeros((1, 1, 1), np.float32)}
    assert "must have a value for each text, and have [1, 1] and [1, 2]" in refusal(triton, "matcher", **given, **two)
    rest = {"num_tokens": one(1, np.int32), "token_scores": np.zeros((1, 1, 1), np.float32)}
    assert "image_embeds must be given" in refusal(triton, "matcher", text=given["text"], score=given["score"], **rest)
    said = refusal(triton, "matcher", **given, **rest, num_captions=one(0, np.int32))
    assert said.endswith("num_captions must be between 1 and 10, not 0")


def test_an_image_is_under_way_until_both_decoders_have_taken_it_up(
    triton: InferenceServerClient, demo_server: TritonServer, files: list[Path]
) -> None:
    """It counts once for the pace."""
    file = backpressure_file(demo_server)
    before = read_counts(file).taken
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda number: rerank(triton, files[number % 8], {}), range(16)))
    assert read_counts(file).under_way == 0
    assert read_counts(file).taken == before + 16


def test_whoever_hangs_up_or_is_too_late_harms_nobody(
    triton: InferenceServerClient, files: list[Path], samples: dict[str, str]
) -> None:
    image = files[0].read_bytes()
    slow = inputs(image, SAMPLED | {"min_tokens": 40, "max_tokens": 50})
    late: list[str] = []
    for microseconds in (1, 20_000, 60_000):  # in any stage, or not at all
        try:
            triton.infer("rerank", slow, timeout=microseconds)
        except InferenceServerException as error:
            late.append(str(error.message()))
    assert late
    assert all("[timeout]" in said or "Request timeout expired" in said for said in late), late
    for seconds in (0.01, 0.1, 0.3):
        calls = [triton.async_infer("rerank", slow, lambda *_: None) for _ in range(8)]
        time.sleep(seconds)
        for call in calls:
            call.cancel()
    assert texts(rerank(triton, files[0], {})["caption"][0]) == [samples[files[0].name]]


def test_defaults_and_an_encoder_that_is_shared(f32_artifacts: Path, files: list[Path], tmp_path: Path) -> None:
    """A default num_captions says how many come back. The image is encoded once."""
    repository = shutil.copytree(f32_artifacts, tmp_path / "models")
    build(str(save_retrieval_checkpoint(tmp_path / "retrieval", own_vision=False)), "f32", repository)
    reference = RetrievalReference(tmp_path / "retrieval")
    defaults = OptionDefaults({"num_captions": 3, "num_beams": 3})
    with (
        TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0, defaults=defaults) as server,
        InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client,
    ):
        before = server.metrics().inferences.get("encoder", 0)  # Triton may not have counted yet
        three = rerank(client, files[0], {})
        assert server.metrics().inferences["encoder"] == before + 1
        assert three["caption"].shape == (1, 3)
        expected = reference.score(Image.open(files[0]), texts(three["caption"][0])).logit
        np.testing.assert_allclose(three["logit"][0], expected.numpy(), rtol=0, atol=F16_TOLERANCE)
        assert rerank(client, files[0], {"rerank": 2, "num_beams": 2})["caption"].shape == (1, 2)
        assert rerank(client, files[0], {"rerank": 3, "num_captions": 1})["caption"].shape == (1, 1)
