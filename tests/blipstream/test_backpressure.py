# SPDX-License-Identifier: Apache-2.0
"""The bound on images under way: it holds back, lets go, and forgets what was lost."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from blipstream import backpressure
from blipstream.backpressure import FILE, IDLE_SECONDS, LEAST_ROOM, ROOM_SECONDS, Backpressure, Counts
from tests.conftest import ROOT


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "backpressure"
    backpressure.create(path)
    monkeypatch.setenv(FILE, str(path))
    return path


def counts(path: Path) -> Counts:
    return Counts(*Counts.layout.unpack(path.read_bytes()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Its `now` is the time."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@contextmanager
def waiting(pressure: Backpressure) -> Iterator[threading.Event]:
    """Somebody who waits for room; the event says that there was some."""
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (pressure.enter(1), entered.set()))  # type: ignore[func-returns-value]
    thread.start()
    yield entered
    assert entered.wait(10)
    thread.join()


def test_it_waits_until_a_decoder_has_taken_up_enough(path: Path) -> None:
    decoder, preprocess = Backpressure(), Backpressure()
    decoder.add_room(8)
    assert [preprocess.enter(6), preprocess.enter(6)] == [6, 2]
    with waiting(preprocess) as entered, decoder.at_work():
        assert not entered.wait(2 * IDLE_SECONDS)
        decoder.take(1)
    assert counts(path) == Counts(room=8, under_way=8, taken=1, busy=0)


def test_what_comes_to_nothing_and_what_has_several_images_is_corrected(path: Path) -> None:
    preprocess = Backpressure()
    preprocess.add_room(8)
    assert preprocess.enter(3) == 3
    preprocess.correct(+4)
    preprocess.correct(-2)
    assert counts(path).under_way == 5
    preprocess.correct(-100)
    assert counts(path).under_way == 0


def test_as_much_is_under_way_as_decoders_take_up_in_a_while(path: Path, clock: SimpleNamespace) -> None:
    """Whose time is over is dropped from the first queue alone, so little is to wait behind it where all is slow."""
    preprocess = Backpressure()
    preprocess.add_room(128)
    assert preprocess.enter(1000) == LEAST_ROOM
    pace = 3 * LEAST_ROOM // int(ROOM_SECONDS)
    for _ in range(10):
        clock.now += 1.0
        preprocess.take(pace)
        preprocess.enter(pace)
    preprocess.enter(1000)
    assert 2 * LEAST_ROOM <= counts(path).under_way <= 4 * LEAST_ROOM
    clock.now += 3600  # of rest
    preprocess.take(counts(path).under_way)
    assert [preprocess.enter(1), preprocess.enter(1000)] == [1, LEAST_ROOM - 1]


def test_a_batch_that_a_decoder_takes_up_at_once_tells_no_pace(path: Path, clock: SimpleNamespace) -> None:
    """Else ever larger ones would be under way, and with them the encoder's batches."""
    preprocess = Backpressure()
    preprocess.add_room(128)
    assert preprocess.enter(1000) == LEAST_ROOM
    for seconds in (9.9, 0.1) * 10:
        clock.now += seconds
        preprocess.take(counts(path).under_way)
        assert preprocess.enter(1000) == LEAST_ROOM


def test_what_was_lost_is_under_way_no_more_once_nothing_is_at_work(path: Path) -> None:
    preprocess, encoder = Backpressure(), Backpressure()
    preprocess.add_room(8)
    assert preprocess.enter(8) == 8
    with waiting(preprocess) as entered, encoder.at_work():
        assert not entered.wait(2 * IDLE_SECONDS)
    assert counts(path).under_way == 1


def test_embeddings_from_elsewhere_make_no_room(path: Path) -> None:
    decoder = Backpressure()
    decoder.take(100)
    assert counts(path).under_way == 0


def test_without_a_decoder_or_a_file_nothing_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Backpressure().enter(1000), Backpressure().enter(1000)] == [1000, 1000]
    monkeypatch.delenv(FILE)
    pressure = Backpressure()
    pressure.add_room(1)
    assert [pressure.enter(1000), pressure.enter(1000)] == [1000, 1000]
    assert counts(path) == Counts(under_way=2000)


def test_processes_count_together(path: Path) -> None:
    program = """
from blipstream.backpressure import Backpressure
pressure = Backpressure()
pressure.add_room(1 << 40)
for _ in range(500):
    pressure.correct(3)
    with pressure.at_work():
        pressure.take(2)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counts(path) == Counts(room=4 << 40, under_way=2000, taken=4000, busy=0)


def test_a_new_server_begins_with_nothing_under_way(path: Path) -> None:
    Backpressure().correct(5)
    backpressure.create(path)
    assert counts(path) == Counts()
