# SPDX-License-Identifier: Apache-2.0
"""If a model fails at one request unexpectedly, its batch-mates get their captions all the same, on a real Triton."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from blipstream.errors import FAILED
from blipstream.server.triton import TritonServer
from tests.support.triton_requests import caption, failure, words

CURSED_PIXELS = np.full((1, 192, 192, 3), 13, np.uint8)
CURSED_BYTES, CURSED_PROMPT = b"cursed", "cursed"
# appended to an adapter: it fails at a cursed request, and at every batch that holds one
CURSES = {
    "preprocess": f"""
from blipstream.images import loader
load_pixels = loader.load_pixels
def fail_at_some(data, *args, **more):
    if data.endswith({CURSED_BYTES!r}):
        raise MemoryError
    return load_pixels(data, *args, **more)
loader.load_pixels = fail_at_some
""",
    "encoder": """
class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        encoder = self.service.encoder
        self.whole, encoder.encode = encoder.encode, self.fail_at_some
    def fail_at_some(self, pixels):
        if (pixels == 13).all(axis=(1, 2, 3)).any():
            raise MemoryError
        return self.whole(pixels)
""",
    "decoder": f"""
class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        self.whole, self.engine._join = self.engine._join, self.fail_at_some
    def fail_at_some(self):
        if any(request.options.prompt == {CURSED_PROMPT!r} for request in self.engine._joining):
            raise MemoryError
        return self.whole()
""",
}


@pytest.fixture(scope="module")
def triton(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServerClient]:
    repository = tmp_path_factory.mktemp("cursed") / "models"
    shutil.copytree(artifacts, repository)
    for model, curse in CURSES.items():
        with (repository / model / "1/model.py").open("a") as adapter:
            adapter.write(curse)
    with (
        TritonServer(repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
        InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client,
    ):
        yield client


def test_a_request_that_fails_fails_alone(
    triton: InferenceServerClient, images: list[bytes], samples: dict[str, str]
) -> None:
    expected = list(samples.values())

    def ask(number: int) -> str:
        image = images[number % len(images)]
        match number % 16:
            case 3:
                return failure(triton, "caption", image=words(image + CURSED_BYTES))
            case 7:
                return failure(triton, "caption_pixels", pixels=CURSED_PIXELS)
            case 11:
                return failure(triton, "caption", image=words(image), prompt=words(CURSED_PROMPT.encode()))
        return caption(triton, image)

    numbers = range(96)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, numbers))
    for number, answer in zip(numbers, answers, strict=True):
        if number % 16 in (3, 7, 11):
            assert f"{FAILED} (MemoryError): try again, or see its log" in answer
        else:
            assert answer == expected[number % len(images)]
