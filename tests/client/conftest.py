# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the client's tests."""

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from blipstream_client import Client
from tests.support.proxy import Proxy, proxy
from tests.support.tiny_triton import TinyTriton, tiny_triton


@pytest.fixture
def samples_folder() -> Path:
    """The folder of the demo checkpoint's sample images."""
    return Path(__file__).parents[2] / "build" / "demo" / "samples"


@pytest.fixture(params=["grpc", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["blocking", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of client: Client or AsyncClient."""
    return str(request.param)


@pytest.fixture
def tiny() -> Iterator[TinyTriton]:
    with tiny_triton() as server:
        yield server


@pytest.fixture
def client(tiny: TinyTriton, scheme: str) -> Iterator[Client]:
    """A client of the tiny server, over each protocol."""
    with Client(tiny.url(scheme)) as client:
        yield client


@pytest.fixture
def between(tiny: TinyTriton, scheme: str) -> Iterator[Proxy]:
    """A proxy in front of the tiny server."""
    with proxy(tiny.port(scheme)) as running:
        yield running


@pytest.fixture
def url(between: Proxy, scheme: str) -> str:
    """The URL of the proxy."""
    return f"{scheme}://127.0.0.1:{between.port}"


@pytest.fixture
def closed_port() -> int:
    """A port that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "teal").save(buffer, "JPEG")
    return buffer.getvalue()
