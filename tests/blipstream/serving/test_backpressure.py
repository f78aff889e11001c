# SPDX-License-Identifier: Apache-2.0
"""The bound on images under way: it holds images back, lets them go, and forgets those that were lost."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from blipstream.serving import backpressure
from blipstream.serving.backpressure import (
    BLIND_SECONDS,
    FILE,
    HANDOVER_SECONDS,
    LEAST_ROOM,
    POLL_SECONDS,
    ROOM_SECONDS,
    Backpressure,
    Counts,
)
from tests.conftest import ROOT
from tests.support.backpressure_file import read_counts


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "backpressure"
    backpressure.create(path)
    monkeypatch.setenv(FILE, str(path))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock whose `now` a test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@contextmanager
def waiting(pressure: Backpressure) -> Iterator[threading.Event]:
    """Meanwhile, a thread waits for room; the event is set once it has got some."""
    entered = threading.Event()

    def enter() -> None:
        while not pressure.enter([1]):
            time.sleep(POLL_SECONDS)
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    yield entered
    assert entered.wait(10)
    thread.join()


def load(pressure: Backpressure, images: int) -> int:
    """Load as many images as there is room for; they now wait for an encoder."""
    entered = pressure.enter([1] * images)
    pressure.hand_over(entered, entered)
    return entered


@pytest.fixture
def preprocess(path: Path) -> Backpressure:  # noqa: ARG001
    """Preprocess in a server with an encoder that tells what it does, and room for 8 images."""
    preprocess = Backpressure()
    preprocess.add_encoder()
    preprocess.add_room(8)
    return preprocess


def test_an_image_that_two_encoders_see_counts_once_for_the_pace(path: Path) -> None:
    pressure = Backpressure()
    pressure.add_encoder()
    for again in (False, True):
        pressure.hand_over(0, 1)
        with pressure.encoding(1, leaves=False, is_alone=False):
            assert read_counts(path).under_way == 1
        pressure.take(1, again=again)
        assert read_counts(path).under_way == 0
    assert read_counts(path).taken == 1


def test_it_waits_until_a_decoder_has_taken_up_enough(path: Path, preprocess: Backpressure) -> None:
    assert [preprocess.enter([1] * 6), preprocess.enter([1] * 6)] == [6, 2]
    decoder, encoder = Backpressure(), Backpressure()
    with waiting(preprocess) as entered:
        preprocess.hand_over(8, 8)
        with decoder.full():
            with encoder.encoding(8, leaves=False):
                assert not entered.wait(4 * HANDOVER_SECONDS)
            assert not entered.wait(4 * HANDOVER_SECONDS)
            decoder.take(1)
            assert entered.wait(10)
            assert read_counts(path).under_way == 8
    assert read_counts(path).taken == 1


def test_refused_requests_and_requests_of_several_images_are_counted_in_images(
    path: Path, preprocess: Backpressure
) -> None:
    assert preprocess.enter([1] * 3) == 3
    preprocess.hand_over(2, 6)
    preprocess.hand_over(1, 0)
    assert (read_counts(path).entered, read_counts(path).loaded) == (0, 6)
    preprocess.hand_over(100, 0)
    assert read_counts(path).entered == 0


def test_requests_of_several_images_take_as_many_places(path: Path, preprocess: Backpressure) -> None:
    assert preprocess.enter([3, 3, 3]) == 2
    preprocess.hand_over(6, 0)
    assert preprocess.enter([64, 1]) == 1  # otherwise its turn would never come
    assert read_counts(path).entered == 64
    with waiting(preprocess) as entered:
        assert not entered.wait(4 * HANDOVER_SECONDS)
        preprocess.hand_over(64, 0)


def test_as_much_is_under_way_as_decoders_take_up_in_a_while(path: Path, clock: SimpleNamespace) -> None:
    """Only the first queue drops what has timed out, so little may wait behind it on a slow server."""
    preprocess = Backpressure()
    preprocess.add_room(128)
    assert load(preprocess, 1000) == LEAST_ROOM
    pace = 3 * LEAST_ROOM // int(ROOM_SECONDS)
    for _ in range(10):
        clock.now += 1.0
        preprocess.take(pace)
        load(preprocess, pace)
    load(preprocess, 1000)
    assert 2 * LEAST_ROOM <= read_counts(path).under_way <= 4 * LEAST_ROOM
    clock.now += 3600  # of rest
    preprocess.take(read_counts(path).under_way)
    assert [load(preprocess, 1), load(preprocess, 1000)] == [1, LEAST_ROOM - 1]


def test_a_batch_that_is_taken_up_at_once_does_not_raise_the_pace(path: Path, clock: SimpleNamespace) -> None:
    """Otherwise more and more images would be under way, in larger and larger batches."""
    preprocess = Backpressure()
    preprocess.add_room(128)
    assert load(preprocess, 1000) == LEAST_ROOM
    for seconds in (9.9, 0.1) * 10:
        clock.now += seconds
        preprocess.take(read_counts(path).under_way)
        assert load(preprocess, 1000) == LEAST_ROOM


def under_way_after(path: Path, clock: SimpleNamespace, seconds: float) -> int:
    clock.now += seconds
    then = read_counts(path)
    then.forget_lost()
    return then.under_way


def test_images_that_an_idle_encoder_does_not_get_are_lost(
    path: Path, clock: SimpleNamespace, preprocess: Backpressure
) -> None:
    """Their senders may have gone: Triton then drops them from the queue, and tells nobody."""
    assert load(preprocess, 8) == 8
    assert under_way_after(path, clock, HANDOVER_SECONDS / 2) == 8
    assert under_way_after(path, clock, HANDOVER_SECONDS) == 0
    assert load(preprocess, 8) == 8
    with preprocess.encoding(2, leaves=True):
        assert under_way_after(path, clock, 3600) == 8
    assert under_way_after(path, clock, HANDOVER_SECONDS / 2) == 8
    assert under_way_after(path, clock, HANDOVER_SECONDS) == 0


def test_refusals_do_not_keep_the_places_of_lost_images(
    path: Path, clock: SimpleNamespace, preprocess: Backpressure
) -> None:
    assert load(preprocess, 7) == 7
    clock.now += HANDOVER_SECONDS * 0.6
    preprocess.hand_over(1, 0)
    assert under_way_after(path, clock, HANDOVER_SECONDS * 0.6) == 0


def test_what_is_in_preprocess_is_never_lost(path: Path, clock: SimpleNamespace, preprocess: Backpressure) -> None:
    assert preprocess.enter([1] * 8) == 8
    assert under_way_after(path, clock, 3600) == 8


def test_an_encoder_that_begins_a_batch_leaves_nothing_behind(path: Path, preprocess: Backpressure) -> None:
    assert load(preprocess, 8) == 8
    with preprocess.encoding(3, leaves=False):
        assert read_counts(path).under_way == 3
        assert load(preprocess, 8) == 5


def test_images_that_a_decoder_with_room_does_not_get_are_lost(
    path: Path, clock: SimpleNamespace, preprocess: Backpressure
) -> None:
    with preprocess.full():
        for images in (3, 2):
            with preprocess.encoding(images, leaves=False):
                pass
        assert under_way_after(path, clock, 3600) == 5
    assert under_way_after(path, clock, 0) == 0
    with preprocess.encoding(4, leaves=False):
        pass
    assert read_counts(path).under_way == 4  # what the batches before left over is lost
    preprocess.take(3)
    assert under_way_after(path, clock, HANDOVER_SECONDS / 2) == 1
    assert under_way_after(path, clock, HANDOVER_SECONDS) == 0


def test_images_are_lost_later_if_no_encoder_tells_what_it_does(path: Path, clock: SimpleNamespace) -> None:
    """TensorRT's encoder is not a Python model."""
    pressure = Backpressure()
    pressure.add_room(8)
    assert load(pressure, 8) == 8
    pressure.take(3)
    with pressure.full():
        assert under_way_after(path, clock, 3600) == 5
    pressure.take(1)
    assert under_way_after(path, clock, HANDOVER_SECONDS * 2) == 4
    assert under_way_after(path, clock, BLIND_SECONDS) == 0


def test_embeddings_from_elsewhere_make_no_room(path: Path, preprocess: Backpressure) -> None:
    assert load(preprocess, 8) == 8
    preprocess.take(100)
    assert read_counts(path).under_way == 8


def test_without_a_decoder_or_a_file_nothing_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Backpressure().enter([1] * 1000), Backpressure().enter([1] * 1000)] == [1000, 1000]
    monkeypatch.delenv(FILE)
    pressure = Backpressure()
    pressure.add_room(1)
    assert [pressure.enter([1] * 1000), pressure.enter([1] * 1000)] == [1000, 1000]
    assert read_counts(path).under_way == 2000


def test_processes_count_together(path: Path) -> None:
    program = """
from blipstream.serving.backpressure import Backpressure
pressure = Backpressure()
pressure.add_room(1 << 40)
for _ in range(500):
    pressure.hand_over(0, 3)
    with pressure.full():
        pressure.take(2)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    then = read_counts(path)
    assert (then.room, then.under_way, then.taken, then.full) == (4 << 40, 2000, 4000, 0)


def test_a_new_server_begins_with_nothing_under_way(path: Path) -> None:
    Backpressure().hand_over(0, 5)
    backpressure.create(path)
    assert read_counts(path) == Counts()
