# SPDX-License-Identifier: Apache-2.0
"""What waits for preprocess: bounded, in order, dropped when late. tests/model_repository has the rest, on Triton."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from blipstream.deadline import Deadline
from blipstream.errors import BlipstreamError, Gone, InvalidInput, Overloaded, Stopping, TimedOut
from blipstream.images.loader import ImageLoader, ImageRequest, Loaded
from blipstream.serving import backpressure
from blipstream.serving.adapter import ModelInstance, TritonRequest
from blipstream.serving.backpressure import FILE, HANDOVER_SECONDS, Backpressure
from blipstream.serving.loading_service import MAX_WAITING, MAX_WAITING_BYTES, LoadingService
from tests.support.backpressure_file import read_counts
from tests.support.waiting import wait_until

INSTANCES, MAX_BATCH, ROOM = 64, 8, 16
BOUND = MAX_WAITING // INSTANCES


class Gauge:
    """A metric of Triton's, as far as it is needed."""

    GAUGE = "gauge"

    def __init__(self, **_: object) -> None:
        self.value = 0

    def Metric(self, labels: object) -> "Gauge":  # noqa: ARG002, N802
        return self

    def increment(self, amount: int) -> None:
        self.value += amount


@dataclass(eq=False)
class Asked:
    """A request as the service sees it, and its answer."""

    timeout: int = 0  # microseconds
    cancelled: bool = False
    on_send: Callable[[], object] = lambda: None
    answers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deadline = Deadline(self.timeout, lambda: self.cancelled)

    def refuse(self, error: BlipstreamError) -> None:
        self.answers.append(error)

    def response(self, outputs: dict[str, Any], seconds: float) -> Any:  # noqa: ARG002
        return outputs["pixels"]

    def send(self, response: Any) -> None:
        self.on_send()
        self.answers.append(response)

    @property
    def answer(self) -> Any:
        wait_until(lambda: bool(self.answers))
        (answer,) = self.answers
        return answer


class Loader:
    """Counts its batches. "wrong" is refused, "slow" comes later."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.slow: Future[Loaded] = Future()

    def load_requests(self, requests: Sequence[ImageRequest]) -> list[Any]:
        self.batches.append(len(requests))
        special: dict[bytes, Any] = {b"wrong": InvalidInput("no image"), b"slow": self.slow}
        return [special.get(each.images[0], np.zeros((each.num_images, 2, 2, 3), np.uint8)) for each in requests]


@dataclass
class Room:
    """A service, and the places of its images."""

    path: Path
    service: LoadingService
    loader: Loader
    pressure: Backpressure
    gauge: Callable[[], int]

    def ask(self, *images: bytes, **facts: Any) -> Asked:
        self.service.check_room()
        asked = Asked(**facts)
        self.service.submit(cast(TritonRequest, asked), ImageRequest(images or (b"image",)))
        return asked

    def fill(self) -> None:
        """Take all places."""
        self.pressure.hand_over(0, ROOM)

    def free(self) -> None:
        with self.pressure.encoding(0, leaves=False):
            pass


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    path = tmp_path / "backpressure"
    backpressure.create(path)
    monkeypatch.setenv(FILE, str(path))
    monkeypatch.setattr(backpressure, "HANDOVER_SECONDS", 3600.0)  # nothing counts as lost
    pressure = Backpressure()
    pressure.add_room(ROOM)
    pressure.add_encoder()
    families: list[Gauge] = []

    def family(**facts: object) -> Gauge:
        families.append(Gauge(**facts))
        return families[-1]

    family.GAUGE = "gauge"  # type: ignore[attr-defined]
    instance = SimpleNamespace(
        pb_utils=SimpleNamespace(MetricFamily=family),
        name="preprocess", count=INSTANCES, max_batch=MAX_BATCH, export_counts=lambda: None, close=lambda: None,
    )  # fmt: skip
    loader = Loader()
    service = LoadingService(cast(ModelInstance, instance), cast(ImageLoader, loader))
    yield Room(path, service, loader, pressure, lambda: families[0].value)
    service.close()


def test_what_has_room_is_loaded_and_what_is_wrong_is_refused_alone(room: Room) -> None:
    good, wrong, other = room.ask(), room.ask(b"wrong"), room.ask(b"a", b"b")
    assert (good.answer.shape, other.answer.shape) == ((1, 2, 2, 3), (2, 2, 2, 3))
    assert str(wrong.answer) == "no image"
    wait_until(lambda: read_counts(room.path).entered == 0)
    assert read_counts(room.path).loaded == 3


def test_a_slow_image_is_answered_when_it_is_loaded(room: Room) -> None:
    slow, quick = room.ask(b"slow"), room.ask()
    assert len(quick.answer) == 1
    assert not slow.answers
    room.loader.slow.set_result(np.ones((1, 2, 2, 3), np.uint8))
    assert slow.answer.all()


def test_the_next_batch_is_loaded_while_the_last_one_is_answered(room: Room) -> None:
    """But no more than that, so that little waits in memory."""
    may_answer = Event()
    try:
        first = room.ask(on_send=may_answer.wait)
        wait_until(lambda: room.loader.batches == [1])
        second = room.ask()
        wait_until(lambda: room.loader.batches == [1, 1])
        third = room.ask()
        assert not any(asked.answers for asked in (first, second, third))
    finally:
        may_answer.set()
    assert [len(asked.answer) for asked in (first, second, third)] == [1] * 3


def test_more_than_the_bound_is_refused_until_there_is_room(room: Room) -> None:
    room.fill()
    waiting = [room.ask() for _ in range(BOUND)]
    with pytest.raises(Overloaded, match=f"^{BOUND} requests wait already: try again later$"):
        room.ask()
    room.service.export()
    assert room.gauge() == BOUND
    assert not any(asked.answers for asked in waiting)
    room.free()
    assert [len(asked.answer) for asked in waiting] == [1] * BOUND
    assert len(room.ask().answer) == 1
    wait_until(lambda: room.gauge() == 0)


def test_bytes_are_bounded_too(room: Room) -> None:
    room.fill()
    room.ask(bytes(MAX_WAITING_BYTES))
    with pytest.raises(Overloaded, match="1 requests wait already"):
        room.ask()


def test_what_is_late_or_cancelled_frees_its_place_while_others_wait(room: Room) -> None:
    room.fill()
    patient, late, cancelled = room.ask(), room.ask(timeout=1), room.ask()
    cancelled.cancelled = True
    assert isinstance(late.answer, TimedOut)
    assert isinstance(cancelled.answer, Gone)
    assert not patient.answers
    assert not room.loader.batches
    room.free()
    assert len(patient.answer) == 1


def test_a_request_that_waits_does_not_keep_the_places_of_lost_images(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images get lost when their senders go: Triton drops them, and tells nobody."""
    room.fill()
    waiting = room.ask()
    assert not waiting.answers
    monkeypatch.setattr(backpressure, "HANDOVER_SECONDS", HANDOVER_SECONDS)
    assert len(waiting.answer) == 1


def test_a_batch_has_as_many_images_as_tritons(room: Room) -> None:
    room.fill()
    waiting = [room.ask(*[b"image"] * images) for images in (3, 5, 1, MAX_BATCH + 1)]
    room.free()
    assert [len(asked.answer) for asked in waiting] == [3, 5, 1, MAX_BATCH + 1]
    assert room.loader.batches == [2, 1, 1]


def test_what_waits_when_the_server_stops_is_refused(room: Room) -> None:
    room.fill()
    waiting = [room.ask(), room.ask()]
    room.service.close()
    assert [type(asked.answer) for asked in waiting] == [Stopping, Stopping]


def test_without_the_shared_file_its_requests_fail_and_the_service_goes_on(
    room: Room, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object, images: Sequence[int]) -> int:
        raise OSError(f"no file for {len(images)}")

    with monkeypatch.context() as patch:
        patch.setattr(Backpressure, "enter", fail)
        assert type(room.ask().answer) is BlipstreamError
    assert "no file for 1" in capfd.readouterr().err
    assert len(room.ask().answer) == 1
