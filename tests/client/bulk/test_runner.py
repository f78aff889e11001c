# SPDX-License-Identifier: Apache-2.0
import errno
import socket
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from blipstream_client import InvalidImage
from blipstream_client.bulk.caption import COLUMNS, CaptionTask
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.items import Item
from blipstream_client.bulk.limit import Limit
from blipstream_client.bulk.rows import Row
from blipstream_client.bulk.runner import Runner
from blipstream_client.bulk.sinks import open_sink
from blipstream_client.bulk.summary import Summary
from blipstream_client.bulk.transport import OtherServed
from blipstream_client.bulk.worker import Finished, Worker
from tests.support.proxy import proxy
from tests.support.tiny_triton import Answer, Inputs, TinyTriton, size_of_image

pq = pyarrow("This test").parquet

TASK = CaptionTask("caption", {})


@pytest.mark.timeout(60)
def test_ctrl_c_does_not_wait_and_loses_no_row(
    tiny: TinyTriton, tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for a web server that has accepted the connection and says nothing."""
    monkeypatch.setattr("blipstream_client._base.MAX_SECONDS", 600)
    fetches: list[socket.socket] = []
    sink = open_sink(str(tmp_path / "captions.parquet"))
    sink.begin({}, COLUMNS)
    with socket.create_server(("127.0.0.1", 0)) as web:
        url = f"http://127.0.0.1:{web.getsockname()[1]}/b.jpg"
        items = [Item("a.jpg", lambda: jpeg), Item(url, lambda: url)]

        def interrupt() -> None:
            fetches.append(web.accept()[0])
            assert fetches[0].recv(1 << 16).startswith(b"GET /b.jpg")
            raise KeyboardInterrupt

        limit = Limit(1)
        worker = Worker(limit, TASK, tiny.url("grpc"), allow_private_urls=True, retries=0, timeout=600)
        with pytest.raises(KeyboardInterrupt):
            Runner(worker, limit, 1, sink, Summary()).run(items, interrupt)
        with fetches[0]:
            assert fetches[0].recv(1) == b""  # the client hung up
            assert pq.read_table(sink.path)["name"].to_pylist() == ["a.jpg"]


def test_a_lost_server_is_waited_for_and_checked(tiny: TinyTriton, scheme: str, jpeg: bytes) -> None:
    """Only the endpoint itself can confirm the rows that it has answered."""
    tiny.name = "demo@1"
    with proxy(tiny.port(scheme)) as between:
        worker = Worker(Limit(1), TASK, f"{scheme}://127.0.0.1:{between.port}", retries=100)
        (row,), endpoints = worker.rows("a.jpg", jpeg)
        assert (row["checkpoint"], endpoints) == ("demo@1", {0})
        for name, outcome in (("renamed@1", nullcontext()), ("demo@2", pytest.raises(OtherServed, match="demo@2"))):
            tiny.name, between.target = name, 1
            between.cut()
            comes_back = threading.Timer(0.3, setattr, (between, "target", tiny.port(scheme)))
            comes_back.start()
            with outcome:
                worker.confirm({0})
            comes_back.join()
        worker.close()


class Recorder(Worker):
    """The rows that it made."""

    def rows(self, name: str, image: bytes | str | InvalidImage, texts: Sequence[str] = ()) -> Finished:
        finished = super().rows(name, image, texts)
        self.given = [*getattr(self, "given", []), name]
        return finished


def test_a_full_disk_cancels_no_request(
    tiny: TinyTriton, tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is healthy, so the client does not hang up on it."""
    is_full, second_is_asked = threading.Event(), threading.Event()

    def answer(inputs: Inputs) -> Answer:
        if inputs["image"][0, 0] != jpeg:
            second_is_asked.set()
            is_full.wait(20)
        return size_of_image(inputs)

    def fill(_: Row) -> None:
        assert second_is_asked.wait(20)
        threading.Timer(0.2, is_full.set).start()
        raise OSError(errno.ENOSPC, "No space left on device")

    tiny.answer = answer
    sink = open_sink(str(tmp_path / "captions.jsonl"))
    sink.begin({}, COLUMNS)
    monkeypatch.setattr(sink, "write", fill)
    limit = Limit(2)
    items = [Item("a.jpg", lambda: jpeg), Item("b.jpg", lambda: jpeg + b"b")]
    worker = Recorder(limit, TASK, tiny.url("grpc"))
    with pytest.raises(OSError, match="No space left"):
        Runner(worker, limit, 2, sink, Summary()).run(items, lambda: None)
    assert worker.given == ["a.jpg", "b.jpg"]
