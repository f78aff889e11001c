# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: work that repeats on the same buffers is recorded once, and replayed by a single launch."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# the largest comes first, so that buffers are made once; the second run of each size records its graph
WARM_UP_SIZES = tuple(size for size in (64, 32, 16, 8, 4, 2, 1) for _ in range(2))


class Graphs(Generic[T]):
    """Functions of tensors that stay in place, one for each key.

    On a GPU, the first run of a function is an ordinary one, which warms libraries up. The second records the graph,
    and all later ones replay it. On other devices every run is an ordinary one.
    """

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cuda"
        self._device = device
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, T]] = {}

    def run(self, key: Hashable, function: Callable[[], T]) -> T:
        """The result of `function`. A replay overwrites the tensors of the last one."""
        if not self.enabled or key not in self._seen:
            self._seen.add(key)
            return function()
        if key not in self._recorded:
            graph = torch.cuda.CUDAGraph()
            # All graphs share one memory pool: they run one after another, and their results stay apart.
            # The pool ends with its last graph, so it is that of a graph that exists
            pool = next((other.pool() for other, _ in self._recorded.values()), None)
            # thread_local: requests arrive in other threads, which may then do what a recording must not
            with torch.cuda.device(self._device), torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                result = function()
            self._recorded[key] = (graph, result)
        graph, result = self._recorded[key]
        graph.replay()
        return result

    def clear(self) -> None:
        """Forget all graphs, because their buffers have moved."""
        self._recorded.clear()


def bucket(size: int) -> int:
    """The smallest power of two that is at least `size`, which is 1 or more."""
    return 1 << (size - 1).bit_length()
