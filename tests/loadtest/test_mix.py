# SPDX-License-Identifier: Apache-2.0
"""The mix of requests: what is drawn, and what a file may not say."""

import io
import random
import re
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from blipstream.server.triton import TritonServer
from blipstream_client import Client
from blipstream_loadtest import mix
from blipstream_loadtest.options import MIX_FILE
from tests.conftest import ROOT


def test_default_mix_draws_by_weight() -> None:
    chosen = mix.load(MIX_FILE)
    rng = random.Random(0)
    drawn = [chosen.draw(rng) for _ in range(2000)]
    kinds = Counter(request.kind for request in drawn)
    assert set(kinds) == {"greedy", "prompt", "beams", "sampling"}
    assert kinds["greedy"] / len(drawn) == pytest.approx(0.6, abs=0.05)
    assert {request.options["prompt"] for request in drawn if request.kind == "prompt"} == {
        "a picture of",
        "two",
        "a photograph of a",
    }
    for request in drawn[:20]:
        with Image.open(io.BytesIO(request.image)) as image:
            assert max(image.size) == (384 if request.size == "original" else int(request.size))


def test_one_of_each_covers_everything() -> None:
    chosen = mix.load(MIX_FILE)
    requests = list(chosen.one_of_each())
    assert {request.kind for request in requests} == set(chosen.kinds)
    assert {request.size for request in requests} == set(chosen.sizes)


@pytest.mark.parametrize(
    ("kind", "texts", "model"),
    [
        ("texts: [two whales, a cat], options: {resize_mode: letterbox}", ("two whales", "a cat"), "match"),
        ("embed: true, options: {resize_mode: letterbox}", (), "embed_image"),
        ("embed: true, texts: [a cat]", ("a cat",), "embed_text"),
        ("explain: true, options: {layer: 1, num_beams: 2}", (), "explain"),
    ],
)
def test_other_models_are_asked(
    kind: str, texts: tuple[str, ...], model: str, matching_server: TritonServer, tmp_path: Path
) -> None:
    def answered() -> int:
        metrics = urllib.request.urlopen(matching_server.metrics_url).read().decode()
        return int(re.findall(rf'^nv_inference_request_success{{model="{model}",.*}} (\d+)', metrics, re.MULTILINE)[0])

    file = tmp_path / "mix.yaml"
    file.write_text(f"{IMAGES}\nrequests: {{a: {{{kind}}}}}")
    request = mix.load(file).draw(random.Random(0))
    assert request.texts == texts
    before = answered()
    with Client(matching_server.grpc_url) as client:
        assert request.ask(client) == []
    assert answered() == before + 1


def test_one_of_the_texts_is_embedded(tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(f"{IMAGES}\nrequests: {{a: {{embed: true, texts: [a, b]}}}}")
    chosen, rng = mix.load(file), random.Random(0)
    assert {chosen.draw(rng).texts for _ in range(50)} == {("a",), ("b",)}


IMAGES = f"images: {{folder: {ROOT}/build/demo/samples, sizes: {{original: 1}}}}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as YAML"),
        ("[]", "the file must be a mapping, got []"),
        ("pictures: {}", "the file has pictures; known are images, requests"),
        (IMAGES, "requests must be a mapping, got None"),
        (f"{IMAGES}\nrequests: {{greedy: {{weight: -1}}}}", "the weight of greedy in requests must be a number of at"),
        (f"{IMAGES}\nrequests: {{greedy: {{weight: 0}}}}", "requests needs at least one weight above 0"),
        (f"{IMAGES}\nrequests: {{a: {{options: {{beams: 3}}}}}}", "requests.a.options has beams; known are"),
        (f"{IMAGES}\nrequests: {{a: {{options: {{prompt: []}}}}}}", "needs at least one value to choose from"),
        (f"{IMAGES}\nrequests: {{a: {{stream: 1}}}}", "requests.a.stream must be true or false, got 1"),
        (f"{IMAGES}\nrequests: {{a: {{explain: 1}}}}", "requests.a.explain must be true or false, got 1"),
        (f"{IMAGES}\nrequests: {{a: {{explain: true, stream: true}}}}", "requests.a is both stream and explain"),
        (f"{IMAGES}\nrequests: {{a: {{texts: two}}}}", "requests.a.texts must be a list of texts, got 'two'"),
        (f"{IMAGES}\nrequests: {{a: {{texts: ['']}}}}", "requests.a.texts must be a list of texts, got ['']"),
        (f"{IMAGES}\nrequests: {{a: {{texts: [b], stream: true}}}}", "beside which only the option resize_mode has"),
        (
            f"{IMAGES}\nrequests: {{a: {{texts: [b], options: {{seed: 1}}}}}}",
            "beside which only the option resize_mode has",
        ),
        (f"{IMAGES}\nrequests: {{a: {{embed: 1}}}}", "requests.a.embed must be true or false, got 1"),
        (f"{IMAGES}\nrequests: {{a: {{embed: true, stream: true}}}}", "requests.a has embed, beside which only the"),
        (
            f"{IMAGES}\nrequests: {{a: {{embed: true, texts: [b], options: {{resize_mode: letterbox}}}}}}",
            "requests.a has embed, beside which no option has a meaning",
        ),
        ("images: {folder: ., sizes: {original: 1}}\nrequests: {a: {weight: 1}}", "has no images"),
        (
            IMAGES.replace("original", "huge") + "\nrequests: {a: {weight: 1}}",
            "must be 'original' or pixels such as 640, got 'huge'",
        ),
    ],
)
def test_mix_mistakes(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(text)
    with pytest.raises(mix.MixError) as caught:
        mix.load(file)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
