# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: what is run again and again on the same buffers is recorded once and replayed by a single launch."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# the largest first, so that buffers are made once; the second run of each records its graph
WARM_UP_SIZES = tuple(size for size in (64, 32, 16, 8, 4, 2, 1) for _ in range(2))


class Graphs(Generic[T]):
    """Functions of tensors that stay where they are, one for each key.

    On a GPU, the first run is an ordinary one, which warms libraries up; the second records the graph; all later
    ones replay it. Elsewhere every run is an ordinary one.
    """

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cuda"
        self._device = device
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, T]] = {}

    def run(self, key: Hashable, function: Callable[[], T]) -> T:
        """What `function` returns; a replay writes it to the same place as the last one."""
        if not self.enabled or key not in self._seen:
            self._seen.add(key)
            return function()
        if key not in self._recorded:
            graph = torch.cuda.CUDAGraph()
            # what a graph needs in between, the others may use too: they run one after another, and results stay apart.
            # Their pool ends with the last of them, so it is asked of one that is there
            pool = next((other.pool() for other, _ in self._recorded.values()), None)
            # thread_local, since requests arrive in other threads, which may call then what a recording must not
            with torch.cuda.device(self._device), torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                result = function()
            self._recorded[key] = (graph, result)
        graph, result = self._recorded[key]
        graph.replay()
        return result

    def clear(self) -> None:
        """Forget all graphs, since their buffers have moved."""
        self._recorded.clear()


def bucket(size: int) -> int:
    """The smallest power of two that holds `size`."""
    return 1 << (size - 1).bit_length()
