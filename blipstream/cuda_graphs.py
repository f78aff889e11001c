# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: work that repeats on the same buffers is recorded once, and replayed by a single launch."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# the largest comes first, so that buffers are made once; the second run of each size records its graph
WARM_UP_SIZES = tuple(size for size in (64, 32, 16, 8, 4, 2, 1) for _ in range(2))
MAX_GRAPHS = 64  # that are kept of one Graphs; the one that was used longest ago goes first
# To record a graph holds up all that run, and what never comes again is recorded in vain. The number is a choice: no
# GPU has measured it
ORDINARY_RUNS = 8

_ordinary_runs = ContextVar("_ordinary_runs", default=ORDINARY_RUNS)


@contextmanager
def recording_soon() -> Iterator[None]:
    """Record what runs inside, in this thread, in its second run already: for warming up, when nobody waits."""
    token = _ordinary_runs.set(1)
    try:
        yield
    finally:
        _ordinary_runs.reset(token)


class Graphs(Generic[T]):
    """Functions of tensors that stay in place, one for each key.

    On a GPU, the first runs of a function in a thread are ordinary ones, which warm libraries up. Once there were
    ORDINARY_RUNS of them since the last recording of any function, its graph is recorded, and all later runs replay it.
    On other devices every run is an ordinary one.
    """

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cuda"
        self._device = device
        # ordinary runs, by thread and key: cuBLAS and cuDNN warm up in each thread
        self._seen: Counter[tuple[int, Hashable]] = Counter()
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, T]] = {}  # the last used one is the last
        if self.enabled:
            # Its own: when a graph ends, PyTorch 2.13 frees the cuBLAS workspaces of the stream on which it was
            # recorded, those of other graphs included (pytorch issue 193402)
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, key: Hashable, function: Callable[[], T]) -> T:
        """The result of `function`. A replay overwrites the results of earlier ones, whatever their keys."""
        run = (get_ident(), key)
        if not self.enabled or (key not in self._recorded and self._seen[run] < _ordinary_runs.get()):
            self._seen[run] += 1
            return function()
        graph, result = self._recorded.pop(key) if key in self._recorded else self._record(function)
        self._recorded[key] = graph, result
        graph.replay()
        return result

    def clear(self) -> None:
        """Forget all graphs, because their buffers have moved."""
        self._wait()
        self._recorded.clear()
        self._seen.clear()

    def _record(self, function: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        self._seen.clear()  # so that recordings do not follow each other at once
        if len(self._recorded) >= MAX_GRAPHS:
            self._wait()
            del self._recorded[next(iter(self._recorded))]
        graph = torch.cuda.CUDAGraph()
        # All graphs share one memory pool, since they run one after another. It ends with its last graph, so it is
        # that of a graph that exists
        pool = next((other.pool() for other, _ in self._recorded.values()), None)
        # thread_local: requests arrive in other threads, which may then do what a recording must not
        recording = torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), _own_workspaces(), recording:
            result = function()
        return graph, result

    def _wait(self) -> None:
        """Return once no graph runs any more."""
        if self._recorded:
            torch.cuda.synchronize(self._device)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let what is recorded inside take cuBLAS workspaces from the graph's own memory pool, which lives as long."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def bucket(size: int) -> int:
    """The smallest power of two that is at least `size`, which is 1 or more."""
    return 1 << (size - 1).bit_length()
