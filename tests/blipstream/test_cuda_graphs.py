# SPDX-License-Identifier: Apache-2.0
"""What a graph gives is what its function gives, also after graphs were forgotten."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor

from blipstream import cuda_graphs
from blipstream.cuda_graphs import ORDINARY_RUNS, Graphs, bucket, recording_soon
from tests.conftest import DEVICES
from tests.support.recorded_graphs import Record


@recording_soon()
def check_buffers_that_move(device: str) -> None:
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


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_buffers_that_move(device: str) -> None:
    check_buffers_that_move(device)


@torch.inference_mode()
def test_buffers_that_move_under_recorded_graphs(recorded_graphs: Record) -> None:
    check_buffers_that_move("cpu")
    assert len(recorded_graphs.recordings) == 3 * 2  # forgotten graphs begin anew with an ordinary run


@torch.inference_mode()
@recording_soon()
def test_each_has_a_stream_and_workspaces_of_its_own(recorded_graphs: Record) -> None:
    """One that forgets its graphs must not free what those of another still use."""
    both: list[Graphs[Tensor]] = [Graphs(torch.device("cpu")) for _ in range(2)]
    buffer = torch.ones(3)
    for graphs in both:
        for key in ("a", "b"):
            for _ in range(3):
                graphs.run(key, buffer.sum)
    streams = [stream for _, stream, _ in recorded_graphs.recordings]
    assert len(set(streams[:2])) == len(set(streams[2:])) == 1
    assert streams[0] != streams[2]
    assert [cleared for *_, cleared in recorded_graphs.recordings] == [1, 3, 5, 7]  # before each
    assert recorded_graphs.cleared == 8  # and after it


@torch.inference_mode()
def test_a_thread_records_only_what_it_has_run(recorded_graphs: Record) -> None:
    """Libraries warm up in each thread, and cannot while a graph is recorded."""
    graphs: Graphs[Tensor] = Graphs(torch.device("cpu"))
    buffer = torch.ones(3)
    graphs.run("sum", buffer.sum)

    def run() -> None:
        with recording_soon():
            graphs.run("sum", buffer.sum)

    with ThreadPoolExecutor(1) as thread:
        for count in (0, 1, 1):
            thread.submit(run).result()
            assert len(recorded_graphs.recordings) == count


@torch.inference_mode()
def test_recordings_are_rare_while_requests_wait(recorded_graphs: Record) -> None:
    """What never comes again is not recorded, and two recordings are never close to each other."""
    graphs: Graphs[Tensor] = Graphs(torch.device("cpu"))
    buffer = torch.ones(3)
    recorded_at = []
    for run in range(20 * ORDINARY_RUNS):
        before = len(recorded_graphs.recordings)
        key = ("a", "b", run)[run % 3]
        graphs.run(key, buffer.sum)
        if len(recorded_graphs.recordings) > before:
            recorded_at.append((key, run))
    assert [key for key, _ in recorded_at] == ["a", "b"]
    assert recorded_at[0][1] >= ORDINARY_RUNS
    assert recorded_at[1][1] - recorded_at[0][1] >= ORDINARY_RUNS
    with recording_soon():
        for _ in range(2):
            graphs.run("c", buffer.sum)
    assert len(recorded_graphs.recordings) == 3


@torch.inference_mode()
@pytest.mark.usefixtures("recorded_graphs")
@recording_soon()
def test_the_graph_that_was_used_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    graphs: Graphs[Tensor] = Graphs(torch.device("cpu"))
    buffer = torch.ones(3)
    for key in "aabbacc":
        graphs.run(key, buffer.sum)
    assert [*graphs._recorded] == ["a", "c"]


@pytest.mark.requires_cuda
@torch.inference_mode()
@recording_soon()
def test_one_forgets_its_graphs_while_another_goes_on() -> None:
    """Others overwrite the memory that this frees: cuBLAS's workspace in a graph must be the graph's own."""
    device = torch.device("cuda")
    both: list[Graphs[Tensor]] = [Graphs(device) for _ in range(2)]
    x = torch.randn(256, 256, device=device)
    product = partial(torch.matmul, x, x)
    expected = product()
    for _ in range(3):
        for graphs in both:
            for _ in range(3):
                torch.testing.assert_close(graphs.run("product", product), expected, rtol=0, atol=1e-2)
        both[0].clear()
        torch.cuda.empty_cache()
        others = torch.full((2**26,), torch.nan, device=device)
        torch.testing.assert_close(both[1].run("product", product), expected, rtol=0, atol=1e-2)
        del others


@pytest.mark.requires_cuda
@torch.inference_mode()
@recording_soon()
def test_graphs_stay_right_while_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """All share a memory pool, also when the first of them is gone."""
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    graphs: Graphs[Tensor] = Graphs(torch.device("cuda"))
    ones = torch.ones(1000, device="cuda")
    for number in [1, 1, 2, 2, 1, 3, 3, 2, 2, 3] * 3:
        assert torch.equal(graphs.run(number, partial(torch.mul, ones, number)), ones * number)


def test_bucket() -> None:
    assert [bucket(size) for size in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
