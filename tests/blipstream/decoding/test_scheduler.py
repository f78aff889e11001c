# SPDX-License-Identifier: Apache-2.0
"""In-flight batching: deltas join to the caption, rows are freed, and every request gets an answer."""

import threading
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from blipstream.cuda_graphs import ORDINARY_RUNS
from blipstream.decoding import Engine, Request, TextDelta
from blipstream.decoding.scheduler import Scheduler
from blipstream.errors import Overloaded
from blipstream.options import DecodingOptions
from tests.conftest import LoadEngine
from tests.reference import Reference
from tests.support.recorded_graphs import Record
from tests.support.waiting import wait_until

LONG = DecodingOptions(max_tokens=60, min_tokens=60)
FAILED = "the server failed at this request (RuntimeError): try again, or see its log"


class Listener:
    """Keeps all deltas."""

    def __init__(self) -> None:
        self.deltas: list[TextDelta] = []
        self.done = threading.Event()

    def __call__(self, delta: TextDelta) -> None:
        self.deltas.append(delta)
        if delta.finish_reason or delta.error:
            self.done.set()

    def wait(self) -> TextDelta:
        assert self.done.wait(60)
        return self.deltas[-1]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


@pytest.fixture
def own_engine(f32_artifacts: Path, load: LoadEngine) -> Engine:
    """An engine that no other test drives."""
    return load(f32_artifacts / "decoder/1/artifact", max_rows=16)


@pytest.fixture
def scheduler(own_engine: Engine) -> Iterator[Scheduler]:
    scheduler = Scheduler(own_engine)
    yield scheduler
    scheduler.close()


@pytest.fixture(scope="module")
def embeds(reference: Reference, scene_images: list[Image.Image]) -> Tensor:
    return reference.embed(scene_images[:16])


def submit(scheduler: Scheduler, embed: Tensor, options: DecodingOptions, **more: Any) -> tuple[Request, Listener]:
    request, listener = scheduler.engine.request(embed, options), Listener()
    scheduler.submit(request, listener, **more)
    return request, listener


def test_deltas_join_to_the_caption(scheduler: Scheduler, engine: Engine, embeds: Tensor) -> None:
    """More streams than rows, of every strategy."""
    kinds = [
        DecodingOptions(),
        DecodingOptions(prompt="two", max_tokens=12),
        DecodingOptions(prompt="a key", include_prompt=False),
        DecodingOptions(do_sample=True, temperature=2.0, seed=7),
        DecodingOptions(do_sample=True, num_captions=3, seed=1),
        DecodingOptions(num_beams=3, num_captions=2),
    ]
    asked = [(embeds[i % 16], kinds[i % len(kinds)]) for i in range(64)]
    expected = [engine.request(*each) for each in asked]
    engine.generate(expected)
    streams = [submit(scheduler, *each, streams=True) for each in asked]
    for (request, listener), other in zip(streams, expected, strict=True):
        last = listener.wait()
        best = request.captions[0]
        assert [caption.text for caption in request.captions] == [caption.text for caption in other.captions]
        assert listener.text == best.text
        assert [score for delta in listener.deltas for score in delta.token_scores] == best.token_scores
        assert last.finish_reason == ("length" if len(best.token_scores) == request.options.max_tokens else "stop")
        single = request.options.max_rows == 1
        assert len(listener.deltas) == (best.num_tokens if single else 1)


def test_a_request_that_does_not_stream_gets_one_delta(scheduler: Scheduler, embeds: Tensor) -> None:
    request, listener = submit(scheduler, embeds[0], DecodingOptions())
    assert listener.wait().text == request.captions[0].text
    assert len(listener.deltas) == 1


def test_a_short_caption_passes_a_long_one(scheduler: Scheduler, embeds: Tensor) -> None:
    _, long = submit(scheduler, embeds[0], LONG, streams=True)
    wait_until(lambda: len(long.deltas) > 2)
    _, short = submit(scheduler, embeds[1], DecodingOptions(max_tokens=2))
    short.wait()
    assert not long.done.is_set()
    long.wait()


def test_first_come_first_served(scheduler: Scheduler, embeds: Tensor) -> None:
    """A wide request waits for rows, and nobody behind it overtakes it."""
    order: list[str] = []

    def listener(name: str) -> Callable[[TextDelta], None]:
        return lambda delta: order.append(name) if delta.finish_reason else None

    engine = scheduler.engine
    for i in range(12):
        scheduler.submit(engine.request(embeds[i], LONG), listener("first"))
    wide = DecodingOptions(num_beams=10, max_tokens=3)
    scheduler.submit(engine.request(embeds[12], wide), listener("wide"))
    scheduler.submit(engine.request(embeds[13], DecodingOptions(max_tokens=1)), listener("last"))
    wait_until(lambda: len(order) == 14)
    assert order.count("first") == 12
    # beside 12 of 16 rows there is room for one, but not for ten before six have ended
    assert 6 <= order.index("last") < order.index("wide")


def test_cancelled_requests_free_their_rows(scheduler: Scheduler, embeds: Tensor, engine: Engine) -> None:
    gone = threading.Event()
    streams = [submit(scheduler, embed, LONG, is_cancelled=gone.is_set, streams=True) for embed in embeds]
    waiting = submit(scheduler, embeds[0], LONG, is_cancelled=gone.is_set)
    wait_until(lambda: all(listener.deltas for _, listener in streams))
    gone.set()
    for _, listener in [*streams, waiting]:
        assert listener.wait().finish_reason == "cancelled"
    assert scheduler.engine.rows == 0
    request, listener = submit(scheduler, embeds[3], DecodingOptions())
    expected = engine.request(embeds[3], DecodingOptions())
    engine.generate([expected])
    listener.wait()
    assert request.captions[0].text == expected.captions[0].text


def test_cancellations_change_no_other_caption(scheduler: Scheduler, embeds: Tensor, engine: Engine) -> None:
    options = [DecodingOptions(max_tokens=40, min_tokens=40 - i) for i in range(16)]
    expected = [engine.request(*each) for each in zip(embeds, options, strict=True)]
    engine.generate(expected)
    gone = threading.Event()
    streams = [
        submit(scheduler, *each, is_cancelled=gone.is_set if i % 3 == 0 else lambda: False, streams=True)
        for i, each in enumerate(zip(embeds, options, strict=True))
    ]
    wait_until(lambda: len(streams[1][1].deltas) > 3)
    gone.set()
    for i, ((request, listener), other) in enumerate(zip(streams, expected, strict=True)):
        if listener.wait().finish_reason != "cancelled":
            assert request.captions[0].text == other.captions[0].text
        else:
            assert i % 3 == 0


def test_a_listener_that_fails_cancels_its_request(scheduler: Scheduler, embeds: Tensor) -> None:
    heard: list[TextDelta] = []

    def broken(delta: TextDelta) -> None:
        heard.append(delta)
        raise OSError("closed")

    scheduler.submit(scheduler.engine.request(embeds[0], LONG), broken, streams=True)
    wait_until(lambda: bool(heard) and heard[-1].finish_reason == "cancelled")
    assert scheduler.engine.rows == 0


def test_a_full_queue_refuses_requests(own_engine: Engine, embeds: Tensor) -> None:
    scheduler = Scheduler(own_engine, max_waiting=2)
    listeners = []

    def flood() -> None:
        for _ in range(40):
            listeners.append(submit(scheduler, embeds[0], LONG)[1])  # noqa: PERF401 - kept up to the refusal

    with pytest.raises(Overloaded, match="2 requests wait already: try again later"):
        flood()
    scheduler.wait_for_room()
    submit(scheduler, embeds[0], DecodingOptions())[1].wait()
    scheduler.close()
    assert all(listener.deltas[-1].finish_reason == "length" for listener in listeners)


def test_closing_answers_all_requests(own_engine: Engine, embeds: Tensor) -> None:
    scheduler = Scheduler(own_engine)
    streams = [submit(scheduler, embeds[i % 16], LONG, streams=True) for i in range(40)]
    scheduler.close()
    assert all(listener.deltas[-1].finish_reason == "length" for _, listener in streams)


def fail(*_: object) -> Any:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("method", ["admit", "step", "text", "cancel"])
def test_an_engine_that_fails_once_is_used_again(
    scheduler: Scheduler,
    embeds: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    method: str,
) -> None:
    """The client gets one sentence, the log gets the traceback."""
    with monkeypatch.context() as patch:
        patch.setattr(Request if method == "text" else scheduler.engine, method, fail)
        _, listener = submit(scheduler, embeds[0], LONG, is_cancelled=lambda: method == "cancel", streams=True)
        assert str(listener.wait().error) == FAILED
    assert "out of memory" in capfd.readouterr().err
    _, listener = submit(scheduler, embeds[0], DecodingOptions())
    assert listener.wait().finish_reason == "stop"


def test_all_requests_of_a_broken_engine_fail(
    scheduler: Scheduler, embeds: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine, "step", fail)
        patch.setattr(scheduler.engine, "reset", fail)
        for embed in embeds[:3]:
            _, listener = submit(scheduler, embed, DecodingOptions())
            assert str(listener.wait().error) == FAILED


@pytest.mark.parametrize("failures", [1, 2])
def test_a_listener_that_fails_at_the_end_is_told_so_once(scheduler: Scheduler, embeds: Tensor, failures: int) -> None:
    heard: list[TextDelta] = []

    def listener(delta: TextDelta) -> None:
        heard.append(delta)
        if len(heard) <= failures:
            fail()

    scheduler.submit(scheduler.engine.request(embeds[0], DecodingOptions()), listener)
    assert submit(scheduler, embeds[1], LONG)[1].wait().finish_reason == "length"
    assert [delta.finish_reason for delta in heard] == ["stop", None]
    assert str(heard[1].error) == FAILED


def test_the_watch_survives_failures(own_engine: Engine, embeds: Tensor) -> None:
    """One client cannot be asked whether it is there, and metrics cannot be written."""
    gone, asked = threading.Event(), threading.Event()

    def is_cancelled() -> bool:
        asked.set()
        return bool(fail())

    scheduler = Scheduler(own_engine, on_watch=fail)
    _, unclear = submit(scheduler, embeds[0], LONG, is_cancelled=is_cancelled)
    streams = [submit(scheduler, embed, LONG, is_cancelled=gone.is_set)[1] for embed in embeds]
    assert asked.wait(60)
    gone.set()
    assert {listener.wait().finish_reason for listener in streams} == {"cancelled"}
    assert unclear.wait().finish_reason == "length"
    scheduler.close()


def test_steps_are_counted(own_engine: Engine, embeds: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    scheduler = Scheduler(
        own_engine, on_watch=lambda scheduler: seen.append((scheduler.num_steps, scheduler.num_tokens))
    )
    streams = [submit(scheduler, embed, DecodingOptions(num_beams=1 + i % 2)) for i, embed in enumerate(embeds)]
    for _, listener in streams:
        listener.wait()
    scheduler.close()
    assert seen[-1][1] == sum(request.captions[0].num_tokens for request, _ in streams)
    assert max(request.captions[0].num_tokens for request, _ in streams) <= seen[-1][0] < seen[-1][1]
    assert (scheduler.engine.rows, scheduler.num_waiting) == (0, 0)


class Cursed(Request):
    """A request that fails the step in which it ends."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "sequences" and value:
            raise RuntimeError("cursed")
        super().__setattr__(name, value)


def curse(request: Request) -> Request:
    return Cursed(request.image_embeds, request.options, request.prompt_ids)


def spoil(request: Request) -> Request:
    """Make a request fail the step that it joins."""
    request.image_embeds = request.image_embeds[:1, :7]
    return request


@pytest.mark.parametrize("harm", [curse, spoil])
def test_a_request_that_fails_a_step_fails_alone(
    scheduler: Scheduler, engine: Engine, embeds: Tensor, harm: Callable[[Request], Request]
) -> None:
    """All others get their usual captions, and streams that were under way have no gap."""
    kinds = [
        DecodingOptions(min_tokens=20),
        DecodingOptions(do_sample=True, temperature=2.0, seed=7, min_tokens=12),
        DecodingOptions(num_beams=3, num_captions=2),
    ]
    asked = [(embeds[i % 16], kinds[i % 3]) for i in range(40)]
    expected = [engine.request(*each) for each in asked]
    engine.generate(expected)
    innocent: list[tuple[Request, Listener]] = []
    guilty: list[Listener] = []
    for i, each in enumerate(asked):
        if i in (10, 11, 30):
            wait_until(lambda: bool(innocent[0][1].deltas))
            guilty.append(Listener())
            scheduler.submit(harm(scheduler.engine.request(embeds[0], DecodingOptions(max_tokens=9))), guilty[-1])
        innocent.append(submit(scheduler, *each, streams=True))
    assert [str(listener.wait().error) for listener in guilty] == [FAILED] * 3
    for (request, listener), other in zip(innocent, expected, strict=True):
        assert not listener.wait().error
        assert [caption.text for caption in request.captions] == [caption.text for caption in other.captions]
        assert listener.text == request.captions[0].text
        assert [score for delta in listener.deltas for score in delta.token_scores] == pytest.approx(
            request.captions[0].token_scores, abs=1e-4
        )
    assert scheduler.engine.rows == scheduler.num_waiting == 0


def test_a_step_that_fails_once_fails_nobody(
    scheduler: Scheduler, embeds: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, memory was short for a moment, or for so many requests."""
    step, failed = scheduler.engine.step, threading.Event()

    def fails_once() -> list[Request]:
        if failed.is_set() or scheduler.engine.rows < 2:  # a request that fails alone is told so
            return step()
        failed.set()
        return fail()  # type: ignore[no-any-return]

    monkeypatch.setattr(scheduler.engine, "step", fails_once)
    streams = [submit(scheduler, embed, LONG)[1] for embed in embeds]
    assert {listener.wait().finish_reason for listener in streams} == {"length"}
    assert failed.is_set()


def test_a_stream_whose_caption_changes_fails(
    scheduler: Scheduler, embeds: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, numbers may depend on what else is in a batch."""
    request, listener = scheduler.engine.request(embeds[0], LONG), Listener()
    other = scheduler.engine.request(embeds[1], DecodingOptions(max_tokens=60, min_tokens=60, prompt="two"))
    scheduler.submit(request, listener, streams=True)
    submit(scheduler, embeds[1], LONG)
    wait_until(lambda: len(listener.deltas) > 2)
    step = scheduler.engine.step

    def fails_once() -> list[Request]:
        monkeypatch.setattr(scheduler.engine, "step", step)
        request.image_embeds, request.prompt_ids = other.image_embeds, other.prompt_ids
        return fail()  # type: ignore[no-any-return]

    monkeypatch.setattr(scheduler.engine, "step", fails_once)
    assert "came out otherwise when it was begun anew" in str(listener.wait().error)


@pytest.mark.parametrize(("count", "tokens"), [(1, 45), (80, 12)])
def test_graphs_are_recorded_after_ordinary_steps_in_the_same_thread(
    f32_artifacts: Path, embeds: Tensor, recorded_graphs: Record, count: int, tokens: int
) -> None:
    """Also for longer and for more requests than before, for which buffers move."""
    engine = Engine.load(f32_artifacts / "decoder/1/artifact", max_rows=512, fixed_shapes=True)
    ordinary: set[int] = set()
    step = engine.step

    def watched() -> list[Request]:
        before = len(recorded_graphs.recordings)
        finished = step()
        if len(recorded_graphs.recordings) == before:
            ordinary.add(threading.get_ident())
        return finished

    engine.step = watched  # type: ignore[method-assign]
    scheduler = Scheduler(engine, warm_up=True)
    try:
        for number, length in ((1, 12), (count, tokens)):
            options = DecodingOptions(max_tokens=length, min_tokens=length)
            for request, listener in [submit(scheduler, embeds[i % 16], options) for i in range(number)]:
                assert not listener.wait().error
                assert len(request.sequences[0].ids) == length
    finally:
        scheduler.close()
    assert len(recorded_graphs.recordings) >= 2
    assert {thread for thread, *_ in recorded_graphs.recordings} == ordinary


@pytest.mark.requires_cuda
def test_served_on_a_gpu(f32_artifacts: Path, embeds: Tensor) -> None:
    """As models do: warmed up in f16, then short captions, a long one for which buffers grow, and many at once."""
    scheduler = Scheduler(Engine.load(f32_artifacts / "decoder/1/artifact", "cuda", "f16"), warm_up=True)
    try:
        for count, tokens in ((8, 12), (1, 45), (80, 12)):
            options = DecodingOptions(max_tokens=tokens, min_tokens=tokens)
            for _ in range(ORDINARY_RUNS):  # by ordinary steps, then by graphs
                asked = [submit(scheduler, embed, options) for embed in islice(cycle(embeds), count)]
                for request, listener in asked:
                    assert not listener.wait().error
                    assert len(request.sequences[0].ids) == tokens
    finally:
        scheduler.close()


def test_a_warm_up_that_fails_is_raised(own_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(own_engine, "warm_up", fail)
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="no memory"):
        Scheduler(own_engine, warm_up=True)
    wait_until(lambda: threading.active_count() == threads)
