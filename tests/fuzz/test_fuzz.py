# SPDX-License-Identifier: Apache-2.0
"""A small part of what tests/fuzz/run.py sends, and tests of the fuzzer itself."""

import re

import pytest

from blipstream.server.triton import TritonServer
from tests.fuzz import run
from tests.fuzz.images import CORPUS, NAMES, SLOW, broken_image
from tests.fuzz.run import fuzz, growth


def test_broken_images_and_requests_are_refused(matching_server: TritonServer) -> None:
    report = fuzz(matching_server, matching_server.pid, images=1_500, requests=500, seed=1, say=print)
    assert report.findings == []
    assert report.answers["OK"] > 300
    assert report.answers["INVALID_ARGUMENT"] > 1_000
    matching_server.check()


def test_damage_is_of_every_kind_and_the_same_each_time() -> None:
    images = [broken_image(2, number) for number in range(500)]
    assert images == [broken_image(2, number) for number in range(500)]
    assert set(NAMES) < {name for name, _ in images} <= {*NAMES, *SLOW}
    assert sum(data == CORPUS.get(name) for name, data in images) < 10


def test_growth_is_told_from_what_comes_and_goes() -> None:
    """Of twenty readings, eight warm up."""
    readings = [
        {"warms up": 80 + min(number, 8) << 20, "wavers": (90, 110)[number % 2] << 20, "leaks": 100 + number << 20}
        for number in range(20)
    ]
    readings[-1]["is new"] = 1 << 40
    assert list(growth(readings, 2)) == ["leaks grew from 109.5 to 117.5 MB"]
    assert len(list(growth(readings, 0))) == 2
    assert not list(growth([], 1))
    assert not list(growth(readings[:4], 0))


def test_memory_is_judged(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that leaks is found over images and over requests, the server over images alone."""
    sent = 0

    async def send(*_: object) -> None:
        nonlocal sent
        sent += 1

    def memory(_: int) -> dict[str, int]:
        return dict.fromkeys(("server 1", "decoder 2"), (1 << 30) + sent * (50 << 10))

    for name, double in {"send_image": send, "send_request": send, "memory": memory}.items():
        monkeypatch.setattr(run, name, double)
    findings = fuzz(server, server.pid, images=25_000, requests=25_000, seed=1, say=print).findings
    assert sorted(re.sub("grew.* over ", "", each) for each in findings) == [
        "decoder 2 the images",
        "decoder 2 the requests",
        "server 1 the images",
    ]
