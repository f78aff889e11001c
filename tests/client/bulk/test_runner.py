# SPDX-License-Identifier: Apache-2.0
import select
import socket
from pathlib import Path

import pytest

from blipstream_client.bulk.captioner import Captioner
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.runner import Runner, Summary
from blipstream_client.bulk.sinks import open_sink
from blipstream_client.bulk.sources import Item
from tests.client.tiny_triton import TinyTriton

pq = pyarrow("This test").parquet


def test_ctrl_c_waits_for_nobody_and_loses_no_row(tiny: TinyTriton, tmp_path: Path, jpeg: bytes) -> None:
    """Not for a web server either that has taken the connection and says nothing."""
    fetches: list[socket.socket] = []
    sink = open_sink(str(tmp_path / "captions.parquet"))
    sink.begin({})
    with socket.create_server(("127.0.0.1", 0)) as web:
        url = f"http://127.0.0.1:{web.getsockname()[1]}/b.jpg"
        items = [Item("a.jpg", lambda: jpeg), Item(url, lambda: url)]

        def interrupt() -> None:
            fetches.append(web.accept()[0])
            assert fetches[0].recv(1 << 16).startswith(b"GET /b.jpg")
            raise KeyboardInterrupt

        limit = Limit(1)
        captioner = Captioner(limit, {}, tiny.url("grpc"), allow_private_urls=True, retries=0)
        with pytest.raises(KeyboardInterrupt):
            Runner(captioner, limit, 1, sink, Summary()).run(items, interrupt)
        with fetches[0]:
            assert select.select(fetches, [], [], 0) == ([], [], [])  # nobody has hung up
            assert pq.read_table(sink.path)["name"].to_pylist() == ["a.jpg"]
