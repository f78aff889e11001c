# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs without a GPU: what torch computes on the CPU is recorded, operator by operator, and replayed.

As on a GPU, a replay computes on the tensors of the recording, and no shape or Python number changes. What a GPU cannot
record fails here, too: reading a number of a tensor, and work in a thread that has not run it before.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blipstream.cuda_graphs import Graphs


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the operators that run while it is active, but for those that only look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, list[Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot be recorded: a number is read"
        output = func(*args, **(kwargs or {}))
        copied = [None if _is_view(each, args) else each for each in tree_leaves(output)]
        if func._schema.is_mutable or any(each is not None for each in copied):
            self.calls.append((func, args, kwargs or {}, copied))
        return output


class Graph:
    """What torch.cuda.CUDAGraph is."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        self.has_run = False  # recording on a CPU has computed it already

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        if not self.has_run:
            self.has_run = True
            return
        for func, args, kwargs, copied in self.calls:
            for old, new in zip(copied, tree_leaves(func(*args, **kwargs)), strict=True):
                if old is not None:
                    old.copy_(new)


def _is_view(output: Any, args: Any) -> bool:
    """Whether the output of an operator lies in one of its inputs, or is no tensor."""
    if not _has_place(output):
        return True
    return any(_place(each) == _place(output) for each in tree_leaves(args) if _has_place(each))


def _has_place(value: Any) -> bool:
    """Whether it is a tensor with memory that can be named; oneDNN's weights are not."""
    return isinstance(value, Tensor) and value.layout == torch.strided


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Record:
    """What has happened."""

    def __init__(self) -> None:
        self.recordings: list[tuple[int, Any, int]] = []  # thread, stream, and workspaces cleared until then
        self.streams = 0
        self.cleared = 0


@pytest.fixture
def recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Let all Graphs record and replay on the CPU."""
    record = Record()

    class Stream:
        def __init__(self, _device: torch.device) -> None:
            record.streams += 1
            self.number = record.streams

    @contextmanager
    def graph(graph: Graph, _pool: Any, stream: Stream, **_: Any) -> Iterator[None]:
        record.recordings.append((threading.get_ident(), stream.number, record.cleared))
        with _Recorder() as recorder:
            yield
        graph.calls = recorder.calls

    def clear() -> None:
        record.cleared += 1

    init = Graphs.__init__

    def enabled(self: Graphs[Any], device: torch.device) -> None:
        init(self, device)
        self.enabled, self._stream = True, Stream(device)  # type: ignore[assignment]

    monkeypatch.setattr(Graphs, "__init__", enabled)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", clear, raising=False)
    return record
