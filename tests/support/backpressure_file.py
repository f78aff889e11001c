# SPDX-License-Identifier: Apache-2.0
"""The file in which a server's models count the images under way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from blipstream.server.triton import TritonServer
from blipstream.serving.backpressure import Counts


def backpressure_file(server: TritonServer) -> Path:
    assert server._workspace
    return server._workspace.folder / "backpressure"


def read_counts(path: Path) -> Counts:
    return Counts(*Counts.layout.unpack(path.read_bytes()))


def write_counts(path: Path, counts: Counts) -> None:
    """Write in place: a file that was emptied first could be read at that moment."""
    with path.open("r+b") as file:
        file.write(Counts.layout.pack(*astuple(counts)))


@contextmanager
def without_room(server: TritonServer) -> Iterator[None]:
    """Meanwhile, whatever comes waits in the queue of preprocess. Nothing else may be under way."""
    path = backpressure_file(server)

    def change(**values: int) -> None:
        write_counts(path, replace(read_counts(path), **values))

    change(full=1, encoded=read_counts(path).room)
    try:
        yield
    finally:
        change(full=0, encoded=0)
