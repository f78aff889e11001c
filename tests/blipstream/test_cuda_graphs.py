# SPDX-License-Identifier: Apache-2.0
"""What a graph gives is what its function gives, also after graphs were forgotten."""

import pytest
import torch
from torch import Tensor

from blipstream.cuda_graphs import Graphs, bucket
from tests.conftest import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_buffers_that_move(device: str) -> None:
    """Each is read by an ordinary run, then by a graph; results stay, and with them the memory that they lie in."""
    graphs: Graphs[Tensor] = Graphs(torch.device(device))
    kept = []
    for size in (3, 5, 9):
        buffer = torch.zeros(size, device=device)
        for value in range(4):
            buffer.fill_(value)
            total, largest = graphs.run("sum", buffer.sum), graphs.run("max", buffer.max)
            assert (total.item(), largest.item()) == (size * value, value)
            kept += [total, largest]
        graphs.clear()


def test_bucket() -> None:
    assert [bucket(size) for size in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
