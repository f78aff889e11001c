# SPDX-License-Identifier: Apache-2.0
"""A small share of what tests/fuzz/run.py sends."""

from blipstream.server import TritonServer
from tests.fuzz.images import CORPUS, NAMES, broken_image
from tests.fuzz.run import fuzz


def test_the_server_bears_broken_images_and_requests(server: TritonServer) -> None:
    report = fuzz(server, server.pid, images=1_500, requests=500, seed=1, say=print)
    assert report.findings == []
    assert report.answers["OK"] > 300
    assert report.answers["INVALID_ARGUMENT"] > 1_000
    server.check()


def test_damage_is_of_every_kind_and_the_same_each_time() -> None:
    images = [broken_image(2, number) for number in range(300)]
    assert images == [broken_image(2, number) for number in range(300)]
    assert {name for name, _ in images} == set(NAMES)
    assert sum(data == CORPUS[name] for name, data in images) < 10
