# SPDX-License-Identifier: Apache-2.0
"""A server with defaults of its operator and of its checkpoint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from blipstream.errors import ServerError
from blipstream.options import OptionDefaults
from blipstream.server.canary import Canary, check_first_caption
from blipstream.server.routes import CAPTION, STREAM
from blipstream.server.triton import TritonServer
from tests.conftest import ROOT
from tests.support.triton_requests import Streams, infer, refusal, words
from tests.support.waiting import wait_until

CHECKPOINT = {"num_beams": 3, "length_penalty": 2.0, "max_tokens": 7}
OPERATOR = OptionDefaults(
    {"prompt": "a", "include_prompt": False, "num_captions": 3, "num_beams": 4, "min_tokens": 3, "max_tokens": 5},
    frozenset({"max_tokens", "min_tokens", "resize_mode"}),
    "letterbox",
)


@pytest.fixture(scope="module")
def repository(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose checkpoint has defaults."""
    copy = shutil.copytree(artifacts, tmp_path_factory.mktemp("defaults") / "models")
    config = copy / "decoder/1/artifact/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"option_defaults": CHECKPOINT}))
    return copy


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0, defaults=OPERATOR) as running:
        yield running


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.mark.parametrize("model", ["caption", "caption_pixels", "caption_stream", "preprocess", "decoder"])
def test_the_models_configs_show_them(triton: InferenceServerClient, model: str) -> None:
    parameters = triton.get_model_config(model).config.parameters
    effective = {**CHECKPOINT, **OPERATOR.values, "resize_mode": "letterbox"}
    assert json.loads(parameters["option_defaults"].string_value) == effective
    fixed = {"max_tokens": 5, "min_tokens": 3, "resize_mode": "letterbox"}
    assert json.loads(parameters["fixed_options"].string_value) == fixed


def test_a_request_without_options_gets_them(triton: InferenceServerClient, images: list[bytes]) -> None:
    result = infer(triton, image=words(images[0]))
    assert result.as_numpy("caption").shape == (1, 3)
    assert result.as_numpy("num_tokens").max() == 5
    assert not result.as_numpy("caption")[0, 0].startswith(b"a ")


def test_a_stream_gets_them(streams: Streams, images: list[bytes]) -> None:
    streams.ask(images[0], {})
    while (result := streams.answer()).as_numpy("finish_reason") is None:
        pass
    assert result.as_numpy("caption").shape == (1, 3)


def test_whoever_sends_an_option_has_the_last_word(triton: InferenceServerClient, images: list[bytes]) -> None:
    greedy = infer(triton, image=words(images[0]), num_beams=np.array([[1]], np.int32), prompt=words(b""))
    assert greedy.as_numpy("caption").shape == (1, 1)
    drawn = infer(triton, image=words(images[0]), do_sample=np.array([[True]]), num_captions=np.array([[2]], np.int32))
    assert drawn.as_numpy("caption").shape == (1, 2)


def test_what_is_fixed(triton: InferenceServerClient, streams: Streams, images: list[bytes]) -> None:
    image, nine, five = words(images[0]), np.array([[9]], np.int32), np.array([[5]], np.int32)
    assert infer(triton, image=image, max_tokens=five).as_numpy("num_tokens").max() == 5
    sentence = "max_tokens is fixed at 5 on this server: leave it out"
    assert sentence in refusal(triton, image=image, max_tokens=nine)
    streams.ask(images[0], {"max_tokens": 9})
    with pytest.raises(InferenceServerException, match=sentence):
        streams.answer()
    embeds = np.zeros((1, 145, 192), np.float16)
    assert sentence in refusal(triton, "decoder", image_embeds=embeds, max_tokens=nine)
    sentence = "resize_mode is fixed at 'letterbox' on this server: leave it out"
    assert sentence in refusal(triton, image=image, resize_mode=words(b"stretch"))


def test_the_server_is_healthy_all_the_same(server: TritonServer) -> None:
    """The canary asks for no more than one token, unless the operator has fixed their number."""
    check_first_caption(server)
    routes = (CAPTION, STREAM)
    with closing(Canary(server.local_url, server.effective_defaults)) as canary:
        for _ in range(2):
            canary.send(routes, all_routes=True)
            wait_until(lambda: all(request.done() for request in canary._requests.values()))
            assert canary._answers == dict.fromkeys(routes, "")
    command = [sys.executable, "deploy/healthcheck.py", f"--url={server.grpc_url}", "--timeout=30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("{", "the defaults in its config are not allowed: option_defaults is no JSON"),
        (
            r"{\"max_tokens\": 100}",
            "prompt and max_tokens together must fit 64 positions, but the prompt takes at least 1 ",
        ),
    ],
)
def test_a_config_that_is_wrong_fails_the_load(artifacts: Path, tmp_path: Path, parameter: str, sentence: str) -> None:
    copy = shutil.copytree(artifacts, tmp_path / "models")
    for path in (copy / "preprocess").glob("**/*.pbtxt"):
        text = f'\nparameters {{ key: "option_defaults" value {{ string_value: "{parameter}" }} }}\n'
        path.write_text(path.read_text() + text)
    server = TritonServer(copy, config="cpu", http_port=0, grpc_port=0, metrics_port=0)
    with pytest.raises(ServerError, match="model 'preprocess' failed to load: ") as caught, server:
        pass
    assert sentence in str(caught.value)
    assert "Traceback" not in str(caught.value)
