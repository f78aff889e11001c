# SPDX-License-Identifier: Apache-2.0
"""`make bench` with the demo checkpoint and a few images: whether it works, not how fast anything is."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from blipstream.files import DEMO_RETRIEVAL_CHECKPOINT
from blipstream.server.triton import TritonServer
from blipstream_bench import benchmark
from blipstream_bench.batch_search import BatchSearch, turns
from blipstream_bench.benchmark import Benchmark, SystemProcess, make_plan
from blipstream_bench.clients import ClientProcesses, answers, items, shared_out, texts, until
from blipstream_bench.command import main
from blipstream_bench.plans import WARM_UPS, BenchPlan
from blipstream_bench.systems import BareEngine, System, Transformers, Triton, decoded
from blipstream_client import BlipstreamError, Client
from tests.conftest import CHECKPOINT, SAMPLES
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)  # the run of all systems takes 80 s on a quiet machine

RATIO = "× "
ROW = {
    "system": "transformers",
    "device": "cpu",
    "dtype": "f32",
    "strategy": "greedy",
    "batch": 8,
    "images_per_s": 0.8,
    "p50_ms": 1500.0,
    "p99_ms": 1700.0,
    "peak_mb": 2500,
}
RESULT: dict[str, Any] = {
    "machine": {"processor": "Any", "cores": 2, "memory_gb": 8.0, "bf16": True, "amx": True, "os": "Linux"},
    "versions": {
        "checkpoint": "base, random weights",
        "python": "3.11.7",
        "torch": "2.8",
        "transformers": "5.0",
        "openvino": "2025.3",
        "tritonserver": "2.51.0",
        "blipstream": "0.1.0",
    },
    "rows": [
        ROW,
        ROW | {"dtype": "bf16", "images_per_s": 2.0},
        ROW | {"system": "engine", "dtype": "bf16", "images_per_s": 6.0},
    ],
}


@pytest.mark.parametrize(("has_bf16", "dtypes"), [(True, ("f32", "bf16")), (False, ("f32",))])
def test_emulated_bf16_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtypes: tuple[str, ...]
) -> None:
    monkeypatch.setattr(benchmark, "cpu_has_bf16", lambda: has_bf16)
    assert make_plan("cpu", quick=False, subject="heatmaps", strategies=(), rounds=None, seconds=None).dtypes == dtypes


def bench(*options: str | Path) -> Result:
    return CliRunner().invoke(main, [str(option) for option in options])


def run_quickly(folder: Path, *options: str, checkpoint: Path = CHECKPOINT) -> tuple[str, Path]:
    """The output of a quick run, and the folder that it writes."""
    command = [sys.executable, "-m", "blipstream_bench", "--quick", "--checkpoint", str(checkpoint), *options]
    result = subprocess.run(
        [*command, "--cache", str(folder / "cache"), "--output", str(folder / "results")],
        capture_output=True,
        text=True,
        check=False,
        # one thread each, since on a busy machine more threads would wait for each other
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, folder / "results"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return run_quickly(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def result(run: tuple[str, Path]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run[1] / "bench.json").read_text())
    return content


@pytest.mark.full
def test_every_system_with_every_strategy(result: dict[str, Any]) -> None:
    assert list(result) == ["machine", "versions", "rows"]
    assert [(row["strategy"], row["system"]) for row in result["rows"]] == [
        (strategy, system)
        for strategy in ("greedy", "beam3", "beam5")
        for system in ("transformers", "engine", "blipstream-triton")
    ]


@pytest.mark.full
def test_rows(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        assert list(row) == list(ROW)
        assert (row["device"], row["dtype"], row["batch"]) == ("cpu", "f32", 2)
        assert row["images_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["peak_mb"] > 100


@pytest.mark.full
@pytest.mark.requires_cuda
def test_on_a_gpu(tmp_path: Path) -> None:
    _, folder = run_quickly(tmp_path, "--device", "cuda")
    rows = json.loads((folder / "bench.json").read_text())["rows"]
    assert {row["device"] for row in rows} == {"cuda"}
    assert {row["system"] for row in rows} == {"transformers", "engine", "blipstream-triton"}


@pytest.mark.full
def test_machine_and_versions(result: dict[str, Any]) -> None:
    assert set(result["machine"]) == set(RESULT["machine"])
    assert set(result["versions"]) == set(RESULT["versions"])
    assert all(result["versions"].values())


@pytest.mark.full
def test_same_captions(run: tuple[str, Path]) -> None:
    assert "engine f32: 12 of 12 captions equal transformers' f32" in run[0]
    assert "blipstream-triton f32: 12 of 12 captions equal transformers' f32" in run[0]


@pytest.mark.full
def test_table_and_chart(run: tuple[str, Path]) -> None:
    output, folder = run
    assert output.count(RATIO) == 9
    assert f"{CHECKPOINT}, 640 x 480 JPEG in, 12 new tokens out" in " ".join(output.split())
    with Image.open(folder / "bench.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 100


@pytest.mark.full
@pytest.mark.timeout(1200)  # on a busy machine
def test_matching(tmp_path: Path) -> None:
    output, folder = run_quickly(tmp_path, "--what=matching", checkpoint=DEMO_RETRIEVAL_CHECKPOINT)
    rows = json.loads((folder / "bench-matching.json").read_text())["rows"]
    assert [(row["strategy"], row["system"]) for row in rows] == [
        (task, system)
        for task in ("match1", "match10", "match100", "embed_image", "embed_text")
        for system in ("transformers", "blipstream-triton")
    ]
    assert all(row["images_per_s"] > 0 for row in rows)
    difference = re.search(r"logits and embeddings differ from transformers' f32 by at most (\S+)\n", output)
    assert difference
    assert float(difference[1]) < 1e-2  # f16 between the encoder and the matcher; texts are nonsense, and logits large
    assert "requests/s" in output
    assert (folder / "bench-matching.png").stat().st_size > 10_000


@pytest.mark.full
@pytest.mark.timeout(1200)  # on a busy machine
def test_heatmaps(tmp_path: Path) -> None:
    output, folder = run_quickly(tmp_path, "--what=heatmaps")
    for system in ("transformers", "engine", "blipstream-triton"):
        assert re.search(rf"{system} f32: explain takes \d+\.\d\d times as long as caption, alone \d", output)
    assert "blipstream-triton f32: 8 of 8 captions equal transformers' f32" in output
    assert (folder / "bench-heatmaps.json").exists()


@pytest.mark.full
def test_a_checkpoint_for_something_else(tmp_path: Path) -> None:
    folders = [f"--cache={tmp_path / 'cache'}", f"--output={tmp_path / 'results'}"]
    refused = bench("--quick", f"--checkpoint={CHECKPOINT}", "--what=matching", *folders)
    assert_refused(refused, f"{CHECKPOINT} is not for matching: give another --checkpoint or --what")


def test_strategies_are_for_captions() -> None:
    assert_refused(
        bench("--what", "matching", "--strategy", "greedy"), "--strategy is for captions: leave it out beside --what"
    )


def test_texts_are_asked_about(matching_server: TritonServer) -> None:
    """One answer for each item, in order, whatever the task."""
    images = [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))[:3]]
    with Client(matching_server.grpc_url) as client:
        for task, size in (("match10", 10), ("embed_image", 256), ("embed_text", 256)):
            asked = items(task, images)
            together, alone = (list(answers(client, asked, task, in_flight)) for in_flight in (3, 1))
            np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
            assert np.shape(together) == (3, size)
    assert len(set(texts(100))) == 100


def test_markdown(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(RESULT))
    shown = bench("--markdown", file)
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].startswith(
        "| strategy | system | dtype | batch | images/s | transformers f32 | transformers bf16 |"
    )
    assert lines[4].startswith("| greedy | engine | bf16 | 8 | 6.00 | × 7.50 | × 3.00 | 1500 | 1700 | 2500 |")
    assert lines[-1].startswith("base, random weights, 640 x 480 JPEG in")
    assert {line.count("|") for line in lines[:5]} == {11}


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [{}]}', "[]", "\x00"])
def test_no_result(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(content)
    assert_refused(bench("--markdown", file), f"{file} is not what this benchmark writes: run it again")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    assert_refused(bench("--device", "cuda"), "--device cuda needs an NVIDIA GPU, and PyTorch finds none")


@pytest.mark.full
def test_no_checkpoint(tmp_path: Path) -> None:
    refused = bench(
        "--quick", "--checkpoint", tmp_path, "--cache", tmp_path / "cache", "--output", tmp_path / "results"
    )
    assert_refused(refused, f"{tmp_path} is no checkpoint: {tmp_path} has no config.json")
    assert_refused(bench("--checkpoint", tmp_path / "absent"), "does not exist")
    assert_refused(bench("--seconds", "-1"), "-1.0 is not in the range x>=0")


class ToySystem(SystemProcess):
    """A system whose images a second are given, apart from its first runs of each batch size, which are slow."""

    def __init__(self, kind: type[System], rates: dict[int, float], log: list[tuple[str, int, float]]) -> None:
        self.kind, self.dtype, self.title = kind, "f32", kind.name
        self._rates = rates
        self._log = log  # of all toys: system, batch size, seconds
        self._runs: Counter[int] = Counter()

    def call(self, method: str, *args: Any) -> Any:
        if method != "throughput":
            return {"compared": ["a dog"], "latency": [1.0], "peak_mb": 100.0}[method]
        _, batch, seconds = args
        self._log.append((self.title, batch, seconds))
        self._runs[batch] += 1
        is_cold = self._runs[batch] <= WARM_UPS["cuda"]
        return 0.01 * batch if is_cold else self._rates[batch]  # cold, the largest batch seems the best


@pytest.fixture
def log() -> list[tuple[str, int, float]]:
    return []


@pytest.fixture
def toys(log: list[tuple[str, int, float]]) -> tuple[Benchmark, dict[SystemProcess, tuple[int, ...]]]:
    """A benchmark of three rounds, and its systems with the batch sizes to try."""
    plan = BenchPlan(("f32",), (1, 4, 8, 16), in_flight=32, rounds=3, seconds=2, images=1, tasks=("greedy",))
    rates = {1: 2.0, 4: 3.0, 8: 4.0, 16: 3.5}
    batches: dict[SystemProcess, tuple[int, ...]] = {
        ToySystem(Transformers, rates, log): plan.batches,
        ToySystem(BareEngine, {1: 5.0, 4: 6.0, 8: 7.0, 16: 8.0}, log): plan.batches,
        ToySystem(Triton, {32: 6.0}, log): (32,),
    }
    return Benchmark(plan, "cuda", CHECKPOINT, {}), batches


def test_best_batch_is_that_of_warm_runs(
    toys: tuple[Benchmark, dict[SystemProcess, tuple[int, ...]]], log: list[tuple[str, int, float]]
) -> None:
    benchmark, batches = toys
    told: list[str] = []
    benchmark.measure(batches, "greedy", told.append, told.append)
    assert [(row.system, row.batch, row.images_per_s) for row in benchmark.measurements] == [
        ("transformers", 8, 4.0),
        ("engine", 16, 8.0),
        ("blipstream-triton", 32, 6.0),
    ]
    first = next(place for place, (*_, seconds) in enumerate(log) if seconds)
    assert not any(seconds == 0 for *_, seconds in log[first:])  # all is warm before anything is measured


def test_systems_take_turns_with_each_batch(
    toys: tuple[Benchmark, dict[SystemProcess, tuple[int, ...]]], log: list[tuple[str, int, float]]
) -> None:
    benchmark, batches = toys
    benchmark.measure(batches, "greedy", lambda _: None, lambda _: None)
    measured = [(system, batch) for system, batch, seconds in log if seconds]
    everything = [
        ("transformers", 1),
        ("engine", 1),
        ("blipstream-triton", 32),
        ("transformers", 4),
        ("engine", 4),
        ("transformers", 8),
        ("engine", 8),
        ("transformers", 16),
        ("engine", 16),
    ]
    promising = [
        ("transformers", 4),
        ("engine", 8),
        ("blipstream-triton", 32),
        ("transformers", 8),
        ("engine", 16),
        ("transformers", 16),
    ]
    assert measured == everything + promising[::-1] + promising


def test_best_batch_is_searched_again_in_each_round() -> None:
    """One slow slice, as on a machine that was busy meanwhile, does not decide."""
    search = BatchSearch((4, 8, 16))
    for batch, rate in ((4, 3.0), (8, 1.0), (16, 3.5)):
        search.add(batch, rate)
    assert (search.best, search.due) == (16, [8, 16])
    for batch, rate in ((8, 4.0), (16, 3.5), (8, 4.0), (16, 3.5)):
        search.add(batch, rate)
    assert (search.best, search.rate, search.due, search.with_more_beams) == (8, 4.0, [4, 8, 16], [4, 8])


def test_drift_is_the_same_for_all() -> None:
    """In two rounds each system has its slices early and late: a machine that slows down evenly favours none."""
    due = {"a": (1, 2), "b": (1, 2), "c": (1, 2)}
    times: Counter[tuple[str, int]] = Counter()
    for time_, turn in enumerate([*turns(due, 0), *turns(due, 1)]):
        times[turn] += time_
    assert len(times) == 6
    assert len(set(times.values())) == 1


def test_clients_are_processes(server: TritonServer) -> None:
    images = [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))[:2]]
    clients = ClientProcesses(server.grpc_url, images, 3)
    try:
        assert len({os.getpid(), *clients.pids()}) == 4
        assert clients.answer_until(0, "greedy", 5) == [2, 2, 1]
        assert clients.answer_until(0, "greedy", 2) == [1, 1]  # the third has nothing to do
    finally:
        clients.close()


def test_clients_report_errors(server: TritonServer) -> None:
    clients = ClientProcesses(server.grpc_url, [b"no image"], 1)
    try:
        with pytest.raises(BlipstreamError, match="image"):
            clients.answer_until(0, "greedy", 1)
    finally:
        clients.close()


def has_ended(pid: int) -> bool:
    """Whether a process has ended, even if nobody has asked for its exit status."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_processes_end_with_a_program_that_is_killed() -> None:
    code = """if True:
        import os, time
        from blipstream_bench.processes import single_process
        if __name__ == "__main__":
            print(single_process().submit(os.getpid).result(), flush=True)
            time.sleep(1000)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        child = int(program.stdout.readline())
        assert not has_ended(child)
        program.kill()
    wait_until(lambda: has_ended(child))


@pytest.mark.parametrize(("total", "parts", "shares"), [(32, 1, [32]), (256, 3, [86, 85, 85]), (2, 3, [1, 1, 0])])
def test_shares(total: int, parts: int, shares: list[int]) -> None:
    assert shared_out(total, parts) == shares


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 0), ("cuda", 1)])
def test_images_are_decoded_in_threads(device: str, ahead: int) -> None:
    """For a GPU, the next batch is decoded while one is in work."""
    threads = set()
    taken = []

    def images() -> Any:
        for number in range(6):
            taken.append(number)
            yield bytes([number])

    def decode(image: bytes) -> npt.NDArray[np.uint8]:
        threads.add(threading.get_ident())
        return np.full((2, 2, 3), image[0], np.uint8)

    batches = []
    for number, batch in enumerate(decoded(images(), decode, 2, device)):
        assert len(taken) == min(2 * (number + 1 + ahead), 6)
        batches.append(batch[:, 0, 0, 0].tolist())
    assert batches == [[0, 1], [2, 3], [4, 5]]
    assert threading.get_ident() not in threads


def test_whole_batches() -> None:
    assert list(until([b"a", b"b", b"c"], 4, deadline=0)) == [b"a", b"b", b"c", b"a"]
    endless = until([b"a"], 4, deadline=time.perf_counter() + 1e6)
    assert len(list(islice(endless, 100))) == 100


def assert_refused(result: Result, sentence: str) -> None:
    assert result.exit_code in (1, 2)
    assert sentence in result.output
    assert isinstance(result.exception, SystemExit)
