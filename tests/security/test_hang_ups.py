# SPDX-License-Identifier: Apache-2.0
"""A client that hangs up harms nobody else."""

from blipstream.server.triton import TritonServer
from blipstream_client import Client
from difficult_clients import hang_up
from tests.conftest import SAMPLES


def test_hang_ups_while_answers_come(server: TritonServer, samples: dict[str, str]) -> None:
    name, expected = next(iter(samples.items()))
    image = (SAMPLES / name).read_bytes()
    with Client(server.grpc_url, timeout=120) as client:
        client.caption(image)  # if answers were cached, they would now come at once
        assert hang_up(server.grpc_url, image, times=60) == {"hung up": 60}
        server.check()
        assert client.caption(image).text == expected


def test_hang_ups_while_refusals_come(server: TritonServer, samples: dict[str, str]) -> None:
    name, expected = next(iter(samples.items()))
    image = (SAMPLES / name).read_bytes()
    assert hang_up(server.grpc_url, image, times=500, num_beams=99) == {"hung up": 500}
    server.check()
    with Client(server.grpc_url, timeout=120) as client:
        assert client.caption(image).text == expected
