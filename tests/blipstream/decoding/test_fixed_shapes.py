# SPDX-License-Identifier: Apache-2.0
"""Steps of fixed shapes, as on a GPU, give the same captions as steps over growing rows, as on a CPU."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blipstream.cuda_graphs import recording_soon
from blipstream.decoding import Engine, Request, engine
from blipstream.decoding.batch import Slot
from blipstream.decoding.strategies import StepReport
from blipstream.options import DecodingOptions
from blipstream.text.decoder import Segment
from tests.conftest import DEVICES
from tests.reference import Reference
from tests.support.recorded_graphs import Record


@pytest.fixture(scope="module")
def embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    """24 scenes, and as many that show nothing known: long captions."""
    embeds = reference.embed(scene_images[:24])
    return torch.cat([embeds, embeds.flip(1) * 1.5])


def random_options(rng: Random) -> DecodingOptions:
    options: dict[str, Any] = {
        "prompt": rng.choice(["", "", "a", "two dogs on a", "a key to the left of a"]),
        "max_tokens": rng.choice([1, 5, 12, 30, 45]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.4]),
        "no_repeat_ngram_size": rng.choice([0, 0, 1, 2, 3]),
    }
    options["min_tokens"] = rng.randint(0, options["max_tokens"])
    kind = rng.choice(["greedy", "beams", "sample"])
    if kind == "beams":
        options["num_beams"] = rng.randint(2, 5)
        options["num_captions"] = rng.randint(1, options["num_beams"])
        options["length_penalty"] = rng.choice([-1.0, 0.0, 1.0, 2.0])
        options["early_stopping"] = rng.choice([True, False])
    elif kind == "sample":
        options |= {"do_sample": True, "num_captions": rng.randint(1, 4), "seed": rng.randint(0, 2**40)}
        options |= {"temperature": rng.choice([0.7, 1.0, 1.8]), "top_k": rng.choice([0, 0, 5])}
        options["top_p"] = rng.choice([1.0, 1.0, 0.8])
    return DecodingOptions(**options)


WAYS = [
    pytest.param(("cpu", False), id="cpu"),
    pytest.param(("cpu", True), id="cpu-with-fixed-shapes"),
    pytest.param(("cuda", True), id="cuda", marks=pytest.mark.requires_cuda),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("max_rows", "room_to_keep"), [(7, 0), (512, 2**16)])
def test_mixed_requests_that_join_and_leave(
    f32_artifacts: Path,
    embeds: Tensor,
    way: tuple[str, bool],
    max_rows: int,
    room_to_keep: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held against all of them at once on a CPU: batches grow, fill, empty, shrink and close gaps."""
    monkeypatch.setattr(engine, "ROOM_TO_KEEP", dict.fromkeys(engine.ROOM_TO_KEEP, room_to_keep))
    rng = Random(max_rows)
    asked = [(embed, random_options(rng)) for embed in embeds for _ in range(2)]
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = Engine.load(folder), Engine.load(folder, way[0], max_rows=max_rows, fixed_shapes=way[1])
    expected = [theirs.request(*each) for each in asked]
    theirs.generate(expected)
    requests = [ours.request(*each) for each in asked]
    waiting, finished = deque(requests), 0
    while finished < len(requests):
        for _ in range(rng.randint(0, 3)):
            if waiting and ours.can_admit(waiting[0]):
                ours.admit(waiting.popleft())
        finished += len(ours.step())
    for request, other in zip(requests, expected, strict=True):
        assert [sequence.ids for sequence in request.sequences] == [sequence.ids for sequence in other.sequences]
        for sequence, theirs_too in zip(request.sequences, other.sequences, strict=True):
            assert sequence.token_scores == pytest.approx(theirs_too.token_scores, rel=1e-4, abs=1e-4)
            assert sequence.score == pytest.approx(theirs_too.score, rel=1e-4, abs=1e-4)
        assert [caption.text for caption in request.captions] == [caption.text for caption in other.captions]


@pytest.mark.parametrize("way", WAYS)
def test_padded_patches_change_nothing(f32_artifacts: Path, embeds: Tensor, way: tuple[str, bool]) -> None:
    """For prompts, beams and samples."""
    rng = Random(0)
    asked = [(embed, random_options(rng)) for embed in embeds[::4]]
    folder = f32_artifacts / "decoder/1/artifact"
    theirs = Engine.load(folder)
    expected = [theirs.request(*each) for each in asked]
    theirs.generate(expected)
    ours = Engine.load(folder, way[0], fixed_shapes=way[1], patch_multiple=8)
    assert ours.image_embeds_shape == theirs.image_embeds_shape
    requests = [ours.request(*each) for each in asked]
    ours.generate(requests)
    assert {batch._buffers.image_embeds.shape[1] % 8 for batch in ours._batches.values()} == {0}
    for request, other in zip(requests, expected, strict=True):
        assert [sequence.ids for sequence in request.sequences] == [sequence.ids for sequence in other.sequences]


def test_shapes_of_prompts_repeat(f32_artifacts: Path, embeds: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of prompts and their lengths."""
    ours = Engine.load(f32_artifacts / "decoder/1/artifact", fixed_shapes=True)
    shapes: set[tuple[int, ...]] = set()
    hidden = ours._decoder.hidden

    def watched(segments: Sequence[Segment]) -> list[Tensor]:
        shapes.update(tuple(segment.ids.shape) for segment in segments if segment.ids.shape[1] > 1)
        return hidden(segments)

    monkeypatch.setattr(ours._decoder, "hidden", watched)
    options = DecodingOptions(max_tokens=1)
    for count in range(1, 8):
        prompts = [" ".join(["a"] * (3 + i)) for i in range(count)]
        ours.generate([ours.request(embeds[0], replace(options, prompt=prompt)) for prompt in prompts])
    assert shapes == {(1, 4), (2, 4), (4, 8), (8, 8), (8, 16)}


def test_shapes_repeat(f32_artifacts: Path, embeds: Tensor) -> None:
    """Each shape of a step is a graph, so few come up, whatever the number and the length of requests."""
    ours = Engine.load(f32_artifacts / "decoder/1/artifact", fixed_shapes=True)
    keys = set()
    for count in range(1, 17):
        requests = [
            ours.request(embed, DecodingOptions(max_tokens=3 + i, min_tokens=3 + i))
            for i, embed in enumerate(embeds[:count])
        ]
        ours.generate(requests)
        (batch,) = ours._batches.values()
        keys |= {key for _, key in batch._graphs._seen}
    assert keys == {(slots, 32, True, False, 0) for slots in (1, 2, 4, 8, 16)}


@pytest.mark.parametrize("max_rows", [7, 512])
def test_recorded_steps_equal_ordinary_ones(
    f32_artifacts: Path, embeds: Tensor, recorded_graphs: Record, max_rows: int
) -> None:
    """A graph is what one step did, operator by operator: it must fit all later steps of its shapes."""
    rng = Random(max_rows)
    asked = [(embed, random_options(rng)) for embed in embeds[::4]]
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = Engine.load(folder), Engine.load(folder, max_rows=max_rows, fixed_shapes=True)
    expected, requests = ([each.request(*one) for one in asked] for each in (theirs, ours))
    theirs.generate(expected)
    with recording_soon():
        ours.generate(requests)
    assert len(recorded_graphs.recordings) > 3
    for request, other in zip(requests, expected, strict=True):
        assert [sequence.ids for sequence in request.sequences] == [sequence.ids for sequence in other.sequences]


def test_a_request_that_joins_midway_changes_nothing(f32_artifacts: Path, embeds: Tensor) -> None:
    """For a long prompt the buffers grow. What lies behind the others' tokens must not be taken for tokens."""
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = Engine.load(folder), Engine.load(folder, fixed_shapes=True)
    for num_beams in (1, 3):
        options = DecodingOptions(
            num_beams=num_beams, max_tokens=20, min_tokens=20, repetition_penalty=0.01, no_repeat_ngram_size=1
        )
        expected = [theirs.request(embed, options) for embed in embeds[24:28]]
        theirs.generate(expected)
        requests = [ours.request(embed, options) for embed in embeds[24:28]]
        for request in requests:
            ours.admit(request)
        ours.step()
        ours.generate([ours.request(embeds[0], replace(options, prompt="a key to the left of " * 6))])
        assert_same(requests, expected)


def test_a_step_is_launched_before_the_last_one_is_read(f32_artifacts: Path, embeds: Tensor) -> None:
    """So a GPU need not wait. A request takes part in one step too many, unless it is known to be its last."""
    ours = Engine.load(f32_artifacts / "decoder/1/artifact", fixed_shapes=True)
    launched: list[int] = []
    collected: list[int] = []
    (batch,) = [ours._batch(ours.request(embeds[0], DecodingOptions()))]
    step, collect = batch.fixed_step, batch.collect

    def watched_step() -> StepReport:
        launched.append(len(collected))
        return step()

    def watched_collect(slots: Sequence[Slot | None], report: StepReport) -> list[Request]:
        collected.append(len(launched))
        return collect(slots, report)

    batch.fixed_step = watched_step  # type: ignore[method-assign]
    batch.collect = watched_collect  # type: ignore[method-assign]
    ours.generate([ours.request(embeds[0], DecodingOptions(max_tokens=4, min_tokens=4))])
    assert (launched, collected) == ([0, 0, 1, 2], [2, 3, 4, 4])
    launched.clear()
    collected.clear()
    request = ours.request(embeds[0], DecodingOptions())
    ours.generate([request])
    assert len(launched) == len(request.sequences[0].ids) + 1


def test_batches_give_room_back(f32_artifacts: Path, embeds: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """If much room is taken and a batch grows, those that hold more than they need shrink."""
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = Engine.load(folder), Engine.load(folder, fixed_shapes=True)
    short, long = DecodingOptions(max_tokens=5, min_tokens=5), DecodingOptions(max_tokens=40, min_tokens=40)
    beams = DecodingOptions(num_beams=2, max_tokens=40, min_tokens=40)

    def run(*options: DecodingOptions) -> None:
        """The last one joins the others midway."""
        asked = list(zip(embeds, options, strict=False))
        expected, requests = ([each.request(*one) for one in asked] for each in (theirs, ours))
        for request in requests[:-1]:
            ours.admit(request)
        for _ in range(10):
            ours.step()
        ours.generate(requests[-1:])
        theirs.generate(expected)
        assert_same(requests, expected)

    def rooms() -> list[int]:
        return [batch.room for batch in ours._batches.values()]

    run(*[short] * 7, long)
    (greedy,) = ours._batches.values()
    buffer = greedy._buffers.keys
    run(beams)
    run(*[short] * 8)
    assert rooms() == [8 * 64, 2 * 64]
    assert greedy._buffers.keys is buffer  # what fits into memory anyway stays in place, and so do graphs

    monkeypatch.setattr(engine, "ROOM_TO_KEEP", dict.fromkeys(engine.ROOM_TO_KEEP, 8 * 64))
    run(long, beams, beams)
    assert rooms() == [64, 2 * 2 * 64]
    run(*[beams] * 3)
    assert rooms() == [64, 4 * 2 * 64]
    run(*[beams] * 5)
    assert rooms() == [0, 8 * 2 * 64]


def test_failure_leaves_nothing_behind(f32_artifacts: Path, embeds: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Engine.load(f32_artifacts / "decoder/1/artifact", fixed_shapes=True)
    request = ours.request(embeds[0], DecodingOptions())

    def fail(hidden: Tensor) -> Tensor:
        raise RuntimeError(f"no memory for {hidden.shape}")

    with monkeypatch.context() as patch:
        patch.setattr(ours._decoder, "_known_words", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            ours.generate([request])
    ours.generate([request])
    assert request.captions


@pytest.mark.parametrize("device", DEVICES)
def test_nan_harms_no_other_request(f32_artifacts: Path, embeds: Tensor, device: str) -> None:
    """Neither the requests beside it nor those that get its slot later."""
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = Engine.load(folder), Engine.load(folder, device, fixed_shapes=True)
    for options in (DecodingOptions(max_tokens=9), DecodingOptions(do_sample=True), DecodingOptions(num_beams=3)):
        expected = [theirs.request(embed, options) for embed in embeds[:4]]
        theirs.generate(expected)
        broken, *requests = (ours.request(embed, options) for embed in embeds[[0, 1, 2, 3]])
        broken.image_embeds = broken.image_embeds * float("nan")
        ours.generate([broken, *requests])
        late = [ours.request(embed, options) for embed in embeds[:4]]
        ours.generate(late)
        assert broken.captions
        assert_same(requests, expected[1:])
        assert_same(late, expected)


def assert_same(requests: list[Request], expected: list[Request]) -> None:
    assert [each.captions[0].text for each in requests] == [each.captions[0].text for each in expected]
    for ours, theirs in zip(requests, expected, strict=True):
        assert ours.captions[0].token_scores == pytest.approx(theirs.captions[0].token_scores, abs=1e-3)


@pytest.mark.requires_cuda
def test_a_copy_does_not_wait_for_a_step(f32_artifacts: Path, embeds: Tensor) -> None:
    """Triton's buffer may hold another image as soon as the request is made."""
    ours = Engine.load(f32_artifacts / "decoder/1/artifact", "cuda")
    image_embeds = embeds[0].cuda()
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # type: ignore[no-untyped-call] # a step under way, of half a second
    request = ours.request(image_embeds, DecodingOptions())
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        image_embeds.zero_()
    torch.cuda.synchronize()
    assert torch.equal(request.image_embeds.cpu(), embeds[0])


@pytest.mark.requires_cuda
def test_image_embeds_of_any_device_and_dtype(f32_artifacts: Path, embeds: Tensor) -> None:
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = Engine.load(folder), Engine.load(folder, "cuda")
    options = DecodingOptions()
    expected = [theirs.request(embeds[0].to(dtype), options) for dtype in (torch.float32, torch.float16)]
    theirs.generate(expected)
    requests = [ours.request(embeds[0], options), ours.request(embeds[0].half().cuda(), options)]
    ours.generate(requests)
    assert_same(requests, expected)


@pytest.mark.requires_cuda
def test_requests_arrive_while_a_graph_is_recorded(f32_artifacts: Path, embeds: Tensor) -> None:
    """In another thread: batches of many widths record while images are copied, for which memory is asked."""
    ours = Engine.load(f32_artifacts / "decoder/1/artifact", "cuda")
    arrived: deque[Request] = deque(maxlen=1000)
    done = Event()

    def arrive() -> None:
        while not done.is_set():
            arrived.append(ours.request(embeds[0], DecodingOptions()))

    with ThreadPoolExecutor(1) as thread:
        arriving = thread.submit(arrive)
        try:
            with recording_soon():
                for num_beams in range(1, 11):
                    ours.generate([ours.request(embeds[1], DecodingOptions(num_beams=num_beams))])
        finally:
            done.set()
        arriving.result()
    ours.generate([arrived[-1]])
    assert arrived[-1].captions


@pytest.mark.requires_cuda
def test_f16(f32_artifacts: Path, embeds: Tensor) -> None:
    folder = f32_artifacts / "decoder/1/artifact"
    theirs, ours = Engine.load(folder), Engine.load(folder, "cuda", "f16")
    for options in (DecodingOptions(), DecodingOptions(num_beams=3)):
        expected = [theirs.request(embed, options) for embed in embeds[:24]]
        requests = [ours.request(embed, options) for embed in embeds[:24]]
        theirs.generate(expected)
        with recording_soon():
            for _ in range(3):  # by ordinary steps, then by graphs
                ours.generate(requests)
        alone = [ours.request(embed, options) for embed in embeds[:24]]
        for request in alone:
            ours.generate([request])
        for each in (requests, alone):  # near ties may differ
            equal = [a.captions[0].text == b.captions[0].text for a, b in zip(each, expected, strict=True)]
            assert sum(equal) >= 23
