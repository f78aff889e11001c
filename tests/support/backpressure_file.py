# SPDX-License-Identifier: Apache-2.0
"""The file in which a server's models count the images under way."""

from pathlib import Path

from blipstream.server.triton import TritonServer
from blipstream.serving.backpressure import Counts


def backpressure_file(server: TritonServer) -> Path:
    assert server._workspace
    return server._workspace.folder / "backpressure"


def read_counts(path: Path) -> Counts:
    return Counts(*Counts.layout.unpack(path.read_bytes()))
