# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest

from blipstream.server.triton import TritonServer
from tests.conftest import SAMPLES
from tests.support.triton_requests import Streams


@pytest.fixture(scope="module")
def images(samples: dict[str, str]) -> list[bytes]:
    return [(SAMPLES / name).read_bytes() for name in samples]


@pytest.fixture
def streams(server: TritonServer) -> Iterator[Streams]:
    """Of each module's own server."""
    streams = Streams(server)
    yield streams
    streams.close()
