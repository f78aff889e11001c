# SPDX-License-Identifier: Apache-2.0
"""What reranking gains, with both of the demo's checkpoints in a real server."""

import pytest

from blipstream.server.triton import TritonServer
from blipstream_client import Client
from examine_reranking import Figures, examine
from scenes import examination


def test_the_gain_is_measured_between_one_draw_and_an_oracle() -> None:
    assert Figures(0.5, 0.8, 0.9).gained == pytest.approx(0.75)
    assert Figures(1, 1, 1).gained == 1


# Few draws at 1.5 are wrong, so that only many scenes show a gain
@pytest.mark.parametrize(("temperature", "count"), [(3, 24), pytest.param(1.5, 300, marks=pytest.mark.full)])
def test_matching_gains_half_of_what_an_oracle_does(demo_server: TritonServer, temperature: float, count: int) -> None:
    with Client(demo_server.grpc_url) as client:
        figures = examine(client, examination(count), temperature)
    assert figures.one_draw < figures.oracle
    assert figures.gained >= 0.5, figures
