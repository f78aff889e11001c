# SPDX-License-Identifier: Apache-2.0
"""The bound on images under way: it holds back, lets go, and forgets what was lost."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blipstream import backpressure
from blipstream.backpressure import FILE, IDLE_SECONDS, Backpressure, Counts
from tests.conftest import ROOT


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "backpressure"
    backpressure.create(path)
    monkeypatch.setenv(FILE, str(path))
    return path


def counts(path: Path) -> Counts:
    return Counts(*Counts.layout.unpack(path.read_bytes()))


@contextmanager
def waiting(pressure: Backpressure) -> Iterator[threading.Event]:
    """Somebody who waits for room; the event says that there was some."""
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (pressure.wait_for_room(), entered.set()))  # type: ignore[func-returns-value]
    thread.start()
    yield entered
    assert entered.wait(10)
    thread.join()


def test_it_waits_until_a_decoder_has_taken_up_enough(path: Path) -> None:
    decoder, preprocess = Backpressure(), Backpressure()
    decoder.add_room(8)
    preprocess.wait_for_room()
    preprocess.admit(10)  # a batch is admitted as a whole
    with waiting(preprocess) as entered, decoder.at_work():
        decoder.take(2)
        assert not entered.wait(2 * IDLE_SECONDS)
        decoder.take(1)
    assert counts(path) == Counts(room=8, under_way=7, taken=3, busy=0)


def test_what_was_lost_is_under_way_no_more_once_nothing_is_at_work(path: Path) -> None:
    preprocess, encoder = Backpressure(), Backpressure()
    preprocess.add_room(8)
    preprocess.admit(8)
    with waiting(preprocess) as entered, encoder.at_work():
        assert not entered.wait(2 * IDLE_SECONDS)
    assert counts(path).under_way == 0


def test_embeddings_from_elsewhere_make_no_room(path: Path) -> None:
    decoder = Backpressure()
    decoder.take(100)
    assert counts(path).under_way == 0


def test_without_a_decoder_or_a_file_nothing_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressure = Backpressure()
    pressure.admit(1000)
    pressure.wait_for_room()
    monkeypatch.delenv(FILE)
    pressure = Backpressure()
    pressure.add_room(1)
    pressure.admit(1000)
    pressure.wait_for_room()
    assert counts(path) == Counts(under_way=1000)


def test_processes_count_together(path: Path) -> None:
    program = """
from blipstream.backpressure import Backpressure
pressure = Backpressure()
pressure.add_room(1)
for _ in range(500):
    pressure.admit(3)
    with pressure.at_work():
        pressure.take(2)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counts(path) == Counts(room=4, under_way=2000, taken=4000, busy=0)


def test_a_new_server_begins_with_nothing_under_way(path: Path) -> None:
    Backpressure().admit(5)
    backpressure.create(path)
    assert counts(path) == Counts()
