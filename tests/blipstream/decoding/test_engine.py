# SPDX-License-Identifier: Apache-2.0
"""Token for token what transformers generates, alone and in any company."""

import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor

from blipstream.decoding import Engine, Request, load_engine
from blipstream.decoding.engine import GRAPH_WARM_UPS
from blipstream.errors import ArtifactError, InvalidInput
from blipstream.options import DecodingOptions
from blipstream.server.installation import ROOT
from tests.conftest import LoadEngine
from tests.reference import Generated, Reference, relative_error
from tests.support.recorded_graphs import Record

PROMPTS = ["", "a", "a key to the left", "two strawberries on a", "zebra quark 7"]  # the last in many pieces


@pytest.fixture(scope="module")
def scene_embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    return torch.cat([reference.embed(scene_images[i : i + 50]) for i in range(0, len(scene_images), 50)])


@pytest.fixture(scope="module")
def other_embeds(reference: Reference) -> Tensor:
    """Photographs and noise, which the checkpoint has never seen: long captions, near ties."""
    photographs = [
        *sklearn.datasets.load_sample_images().images,
        *(getattr(skimage.data, name)() for name in ("astronaut", "camera", "cat", "coffee", "coins", "rocket")),
    ]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64 * 2**i, 96, 3), dtype=np.uint8) for i in range(4)]
    return reference.embed([Image.fromarray(array).convert("RGB") for array in [*photographs, *noise]])


def generate(engine: Engine, image_embeds: Tensor, options: Sequence[DecodingOptions]) -> list[Request]:
    requests = [engine.request(embeds, option) for embeds, option in zip(image_embeds, options, strict=True)]
    engine.generate(requests)
    return requests


def assert_equal(requests: Sequence[Request], expected: Sequence[Generated]) -> None:
    assert [request.captions[0].text for request in requests] == [one.text for one in expected]
    assert [request.sequences[0].ids for request in requests] == [one.new_ids for one in expected]
    assert [request.captions[0].num_tokens for request in requests] == [len(one.new_ids) for one in expected]
    for request, one in zip(requests, expected, strict=True):
        assert request.captions[0].score == pytest.approx(one.score, rel=1e-4, abs=1e-4)


def test_logits(engine: Engine, reference: Reference, scene_embeds: Tensor) -> None:
    ids = torch.tensor([[engine.config.text.start_token_id, 30, 31, 32]] * 4)
    theirs = reference.model.text_decoder(input_ids=ids, encoder_hidden_states=scene_embeds[:4]).logits[:, -1]
    assert relative_error(engine.logits(ids, scene_embeds[:4]).cpu(), theirs) < 1e-5


def test_scenes(engine: Engine, reference: Reference, scene_embeds: Tensor) -> None:
    requests = generate(engine, scene_embeds, [DecodingOptions()] * len(scene_embeds))
    assert_equal(requests, reference.generate(scene_embeds))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(("max_tokens", "min_tokens"), [(1, 0), (5, 5), (40, 0), (40, 25)])
def test_options_on_unknown_images(
    engine: Engine, reference: Reference, other_embeds: Tensor, prompt: str, max_tokens: int, min_tokens: int
) -> None:
    options = DecodingOptions(prompt=prompt, max_tokens=max_tokens, min_tokens=min_tokens)
    requests = generate(engine, other_embeds, [options] * len(other_embeds))
    expected = reference.generate(other_embeds, prompt, max_new_tokens=max_tokens, min_new_tokens=min_tokens or None)
    assert_equal(requests, expected)


def test_prompts_of_mixed_length_in_one_batch(engine: Engine, reference: Reference, scene_embeds: Tensor) -> None:
    options = [DecodingOptions(prompt=PROMPTS[i % len(PROMPTS)], max_tokens=5 + i) for i in range(20)]
    requests = generate(engine, scene_embeds[:20], options)
    for request, embeds, option in zip(requests, scene_embeds, options, strict=False):
        assert_equal([request], reference.generate(embeds[None], option.prompt, max_new_tokens=option.max_tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_what_is_no_number_is_refused(engine: Engine, dtype: torch.dtype) -> None:
    for number in (float("inf"), float("-inf"), float("nan")):
        image_embeds = torch.full(engine.image_embeds_shape, torch.finfo(dtype).min, dtype=dtype)
        engine.request(image_embeds, DecodingOptions())
        image_embeds[-1, -1] = number
        with pytest.raises(InvalidInput, match="image_embeds must be finite numbers"):
            engine.request(image_embeds, DecodingOptions())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_request_keeps_a_copy(engine: Engine, scene_embeds: Tensor, dtype: torch.dtype) -> None:
    image_embeds = scene_embeds[0].to(dtype, copy=True)
    request = engine.request(image_embeds, DecodingOptions())
    image_embeds.zero_()
    assert torch.equal(request.image_embeds.cpu().float(), scene_embeds[0].to(dtype).float())


COUNT_THREADS = """
import os, sys, time
from pathlib import Path
from blipstream.decoding import load_engine

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
load_engine(Path(sys.argv[1]), served=True)
deadline = time.monotonic() + 30
while threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(threads() - before)
"""


def test_loading_leaves_no_threads(f32_artifacts: Path) -> None:
    """More of OpenMP's threads than there are processors slow each other down."""
    command = [sys.executable, "-c", COUNT_THREADS, str(f32_artifacts / "decoder/1/artifact")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "0\n"


def test_rows_join_and_leave(f32_artifacts: Path, load: LoadEngine, reference: Reference, other_embeds: Tensor) -> None:
    """Few rows, requests of very different length that arrive between steps: places are reused all the time."""
    engine = load(f32_artifacts / "decoder/1/artifact", max_rows=3)
    lengths = [1, 17, 3, 40, 2, 9, 1, 30, 5, 4, 12, 8]
    requests = [
        engine.request(embeds, DecodingOptions(max_tokens=length, min_tokens=length))
        for embeds, length in zip(other_embeds, lengths, strict=True)
    ]
    waiting, finished = deque(requests), list[Request]()
    while len(finished) < len(requests):
        if waiting and engine.can_admit(waiting[0]):
            engine.admit(waiting.popleft())
        finished += engine.step()
    assert not engine.step()
    assert {id(request) for request in finished} == {id(request) for request in requests}
    for request, embeds, length in zip(requests, other_embeds, lengths, strict=True):
        assert_equal([request], reference.generate(embeds[None], max_new_tokens=length, min_new_tokens=length))


def test_bf16(f32_artifacts: Path, reference: Reference, scene_embeds: Tensor, other_embeds: Tensor) -> None:
    engine = load_engine(f32_artifacts / "decoder/1/artifact", dtype="bf16")
    embeds = torch.cat([scene_embeds, other_embeds])
    requests = generate(engine, embeds, [DecodingOptions()] * len(embeds))
    expected = reference.generate(embeds)
    equal = [request.captions[0].text == one.text for request, one in zip(requests, expected, strict=True)]
    assert sum(equal[: len(scene_embeds)]) >= 0.99 * len(scene_embeds)


def test_half_precision_embeddings(engine: Engine, reference: Reference, scene_embeds: Tensor) -> None:
    """As they come through Triton."""
    embeds = scene_embeds[:20].half()
    assert_equal(generate(engine, embeds, [DecodingOptions()] * 20), reference.generate(embeds))


def test_no_room_for_prompt_and_caption(engine: Engine, scene_embeds: Tensor) -> None:
    assert engine.config.text.max_positions == 64
    engine.request(scene_embeds[0], DecodingOptions(max_tokens=64))
    with pytest.raises(InvalidInput, match=r"must fit 64 positions, but the prompt takes 2 and max_tokens is 64"):
        engine.request(scene_embeds[0], DecodingOptions(prompt="a", max_tokens=64))


def test_full_length(engine: Engine, reference: Reference, other_embeds: Tensor) -> None:
    """Every position is used."""
    options = DecodingOptions(max_tokens=64, min_tokens=64)
    expected = reference.generate(other_embeds[:4], max_new_tokens=64, min_new_tokens=64)
    assert_equal(generate(engine, other_embeds[:4], [options] * 4), expected)


def test_embeddings_of_another_shape(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match=r"image_embeds must have shape \[145, 192\], not \[577, 768\]"):
        engine.request(torch.zeros(577, 768), DecodingOptions())


def test_missing_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no artifact in .*blipstream build"):
        load_engine(tmp_path)


def test_incomplete_artifact(f32_artifacts: Path, tmp_path: Path) -> None:
    whole = f32_artifacts / "decoder/1/artifact"
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"decoder\.safetensors cannot be loaded: .*blipstream build"):
        load_engine(tmp_path)
    (tmp_path / "decoder.safetensors").write_bytes((whole / "decoder.safetensors").read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"decoder\.safetensors cannot be loaded"):
        load_engine(tmp_path)


def test_a_token_that_the_model_has_not(artifacts: Path) -> None:
    """As where a tokenizer was given words, and its model none for them: on a GPU this would end the process."""
    engine = load_engine(artifacts / "decoder/1/artifact")
    engine._tokenizer._tokenizer.add_tokens(["quokka"])
    with pytest.raises(InvalidInput, match="prompt must be of the model's 478 tokens, and its tokenizer makes others"):
        engine.request(torch.zeros(145, 192), DecodingOptions(prompt="a quokka"))
    generate(engine, torch.zeros(1, 145, 192), [DecodingOptions(prompt="a zebra")])


def test_what_a_gpu_would_do_otherwise_is_off(artifacts: Path) -> None:
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    Engine.load(artifacts / "decoder/1/artifact")
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]


def test_a_gpu_is_warmed_up_for_each_strategy(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, recorded_graphs: Record
) -> None:
    """Then no such request waits for a graph to be recorded."""
    engine = Engine.load(artifacts / "decoder/1/artifact", fixed_shapes=True)
    monkeypatch.setattr(engine, "_warm_ups", GRAPH_WARM_UPS)
    engine.warm_up()
    recorded = len(recorded_graphs.recordings)
    for options, sizes in GRAPH_WARM_UPS:
        for size in (sizes[0], 3, 1):
            engine.generate([engine.request(torch.zeros(engine.image_embeds_shape), options) for _ in range(size)])
    assert len(recorded_graphs.recordings) == recorded == sum(len(set(sizes)) for _, sizes in GRAPH_WARM_UPS)
