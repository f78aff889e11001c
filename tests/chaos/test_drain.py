# SPDX-License-Identifier: Apache-2.0
"""A new server replaces an old one without a failed request: start the new one, then stop the old one."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blipstream.server.triton import TritonServer
from blipstream_client import BlipstreamError, Client
from tests.chaos.run import Load
from tests.conftest import SAMPLES


def urls(scheme: str, *servers: TritonServer) -> str:
    return f"{scheme}://" + ",".join(f"127.0.0.1:{getattr(server, f'{scheme}_port')}" for server in servers)


def refusals_until_it_leaves(url: str, image: bytes, leaving: TritonServer) -> list[BlipstreamError]:
    """The errors of a client without retries that keeps asking a server while it drains."""
    refusals = []
    with Client(url, retries=0, timeout=30) as client, ThreadPoolExecutor(1) as executor:
        stopping = executor.submit(leaving.stop)
        while not stopping.done():
            try:
                client.caption(image)
            except BlipstreamError as error:
                refusals.append(error)
                time.sleep(0.05)
    return refusals


@pytest.mark.parametrize("scheme", ["grpc", pytest.param("http", marks=pytest.mark.full)])
def test_no_request_fails(server: TritonServer, artifacts: Path, samples: dict[str, str], scheme: str) -> None:
    image = (SAMPLES / next(iter(samples))).read_bytes()
    with (
        TritonServer(artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as old,
        Load(urls(scheme, old, server), matches=False) as load,
    ):
        load.wait_for_captions(time.monotonic())
        refusals = refusals_until_it_leaves(urls(scheme, old), image, old)
        load.wait_for_captions(time.monotonic())
    assert set(load.answers) == {"right"}
    assert not load.refusals
    assert all(refusal.transient for refusal in refusals), refusals  # no request that was accepted has failed
