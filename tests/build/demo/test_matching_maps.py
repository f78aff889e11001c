# SPDX-License-Identifier: Apache-2.0
"""Heatmaps of matching point at what words name, with the demo's retrieval checkpoint in a real server."""

import pytest

from blipstream.server.triton import TritonServer
from blipstream_client import Client
from examine_matching_maps import examine
from scenes import examination


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.full)])
def test_words_point_into_their_objects(demo_server: TritonServer, count: int) -> None:
    with Client(demo_server.grpc_url) as client:
        figures = examine(client, examination(count))
    assert figures.own >= 0.95
    assert figures.other <= 0.05
