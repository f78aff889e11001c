# SPDX-License-Identifier: Apache-2.0
"""Measure each system in each number format, in turns, and write bench.json and bench.png."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console

from blipstream.dtypes import cpu_has_bf16
from blipstream.errors import BlipstreamError
from blipstream.server.network import bypass_proxies
from blipstream.server.served_repository import captions, matches
from blipstream_bench.adapter_costs import adapter_costs
from blipstream_bench.batch_search import BatchSearch, turns
from blipstream_bench.clients import Answer
from blipstream_bench.machine import machine, versions
from blipstream_bench.plans import (
    ADAPTERS,
    DEFAULT_ARCHITECTURES,
    NUM_TEXTS,
    PAIRS,
    PICTURE_SIZE,
    PLANS,
    QUICK,
    STRATEGIES,
    TASKS,
    WARM_UPS,
    BenchPlan,
)
from blipstream_bench.processes import single_process
from blipstream_bench.random_checkpoint import save_random_checkpoint
from blipstream_bench.report import Measurement, chart, costs, terminal_table, unit
from blipstream_bench.systems import SYSTEMS, System, Transformers, Triton
from blipstream_build.inspection import CAPTIONER, RETRIEVER
from blipstream_client import BlipstreamError as ClientError

P = ParamSpec("P")
T = TypeVar("T")


def make_plan(
    device: str, quick: bool, subject: str, strategies: tuple[str, ...], rounds: int | None, seconds: float | None
) -> BenchPlan:
    """What the options ask for. Raises ClickException if there is no such device, or no such strategy."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            "--device cuda needs an NVIDIA GPU, and PyTorch finds none: use --device cpu, "
            "or install the driver and a PyTorch with CUDA"
        )
    plan = replace(QUICK if quick else PLANS[device], subject=subject, tasks=TASKS[subject])
    if device == "cpu" and not cpu_has_bf16():  # emulated, it is many times slower than f32, and nobody serves it
        plan = replace(plan, dtypes=("f32",))
    if rounds is not None:
        plan = replace(plan, rounds=rounds)
    if seconds is not None:
        plan = replace(plan, seconds=seconds)
    if strategies and subject != "captions":
        raise click.ClickException(f"--strategy is for captions: leave it out beside --what {subject}")
    if strategies:  # with the most beams last, since a process's peak memory never falls
        plan = replace(plan, tasks=tuple(name for name in STRATEGIES if name in strategies))
    return plan


def default_architectures(device: str, checkpoint: Path | None) -> tuple[str, ...]:
    """The architectures to measure if no option names any; a checkpoint has its own."""
    return ("",) if checkpoint else DEFAULT_ARCHITECTURES[device]


class SystemProcess:
    """A system in a process of its own."""

    def __init__(
        self, kind: type[System], checkpoint: Path, repository: Path, device: str, dtype: str, images: list[bytes]
    ) -> None:
        self.kind = kind
        self.dtype = dtype
        self.title = f"{kind.name} {dtype}"
        self._pool = single_process()
        try:
            self.run(_open, kind, checkpoint, repository, device, dtype, images)
        except BaseException:
            self._pool.shutdown()
            raise

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the process."""
        return self._pool.submit(function, *args, **kwargs).result()

    def call(self, method: str, *args: object) -> Any:  # noqa: ANN401
        """Call a method of the system."""
        return self.run(_call, method, *args)

    def __enter__(self) -> "SystemProcess":
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.call("close")
        finally:
            self._pool.shutdown()


_system: System  # the one that this process holds, if it is a SystemProcess


def _open(kind: type[System], checkpoint: Path, repository: Path, device: str, dtype: str, images: list[bytes]) -> None:
    global _system
    _system = kind(checkpoint, repository, device, dtype, images)
    _system.load()


def _call(method: str, *args: object) -> Any:  # noqa: ANN401
    return getattr(_system, method)(*args)


class Benchmark:
    """One run on one checkpoint: its plan, and what it has measured."""

    def __init__(self, plan: BenchPlan, device: str, checkpoint: Path, repositories: dict[str, Path]) -> None:
        self.plan = plan
        self.device = device
        self.checkpoint = checkpoint
        self.repositories = repositories  # by dtype
        self.images = [picture(seed) for seed in range(plan.images)]
        self.measurements: list[Measurement] = []
        self.answers: dict[tuple[str, str], dict[str, list[Answer]]] = {}  # by task and dtype, then by system
        self.triton_version = ""

    def run(self, say: Callable[[str], None], tell: Callable[[str], None]) -> None:
        """Measure everything, and tell `say` what is being done, and `tell` what was measured."""
        with ExitStack() as stack:
            processes = []
            for kind in SYSTEMS[self.plan.subject]:
                for dtype in self.plan.dtypes:
                    say(f"{kind.name} {dtype}: starting")
                    processes.append(stack.enter_context(self._start(kind, dtype)))
            self.triton_version = next(process.call("version") for process in processes if process.kind is Triton)
            found: dict[SystemProcess, Sequence[int]] = {}
            for task in self.plan.tasks:
                batches = found or {process: self._batches(process.kind, task) for process in processes}
                searches = self.measure(batches, task, say, tell)
                if self.plan.subject == "captions":  # what follows has more rows for each image
                    found = {process: search.with_more_beams for process, search in searches.items()}

    def _start(self, kind: type[System], dtype: str) -> SystemProcess:
        return SystemProcess(kind, self.checkpoint, self.repositories[dtype], self.device, dtype, self.images)

    def _batches(self, kind: type[System], task: str) -> Sequence[int]:
        """The batch sizes to try, in ascending order. Many texts for each image need few images to fill a batch."""
        count = NUM_TEXTS.get(task, 1)
        if kind is Triton:
            return (max(self.plan.in_flight // count, 2),)
        smallest, *larger = self.plan.batches
        return smallest, *(batch for batch in larger if batch * count <= 2 * PAIRS[self.device])

    def measure(
        self,
        batches: Mapping[SystemProcess, Sequence[int]],
        task: str,
        say: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> dict[SystemProcess, BatchSearch]:
        """Measure systems with one task, each with its best batch size, which is searched for among `batches`."""
        seconds = self.plan.seconds
        searches = {process: BatchSearch(candidates) for process, candidates in batches.items()}
        times: dict[SystemProcess, list[float]] = {process: [] for process in batches}
        for process, candidates in batches.items():
            for batch in candidates:
                say(f"{process.title}, {task}: warming up, batches of {batch}")
                for _ in range(WARM_UPS[self.device]):
                    process.call("throughput", task, batch, 0)
            compared = process.call("compared", task)
            self.answers.setdefault((task, process.dtype), {})[process.kind.name] = compared
        for number in range(self.plan.rounds):
            step = f"round {number + 1} of {self.plan.rounds}"
            for process, batch in turns({process: search.due for process, search in searches.items()}, number):
                what = f"{process.title}, {task}: {step}, batches of {batch}"
                say(what)
                rate = process.call("throughput", task, batch, seconds)
                searches[process].add(batch, rate)
                tell(f"{what}, {rate:.2f} {unit(task)}")
            for process, _ in turns(dict.fromkeys(batches, (1,)), number):
                what = f"{process.title}, {task}: {step}, one at a time"
                say(what)
                alone = process.call("latency", task, seconds)
                times[process] += alone
                tell(f"{what}, {statistics.median(alone):.0f} ms")
        for process, search in searches.items():
            self.measurements.append(
                Measurement(
                    system=process.kind.name,
                    device=self.device,
                    dtype=process.dtype,
                    strategy=task,
                    batch=search.best,
                    images_per_s=round(search.rate, 3),
                    p50_ms=round(float(np.percentile(times[process], 50)), 1),
                    p99_ms=round(float(np.percentile(times[process], 99)), 1),
                    peak_mb=round(process.call("peak_mb")),
                )
            )
        return searches

    def agreement(self) -> Iterator[str]:
        """Say for each system and dtype how far its answers are those of transformers in that dtype."""
        for kind in SYSTEMS[self.plan.subject][1:]:
            for dtype in self.plan.dtypes:
                pairs = [
                    pair
                    for task in self.plan.tasks
                    for pair in zip(
                        self.answers[task, dtype][kind.name], self.answers[task, dtype][Transformers.name], strict=True
                    )
                ]
                title = f"{kind.name} {dtype}"
                if self.plan.subject == "matching":
                    largest = max(np.abs(np.subtract(ours, theirs)).max() for ours, theirs in pairs)
                    yield f"{title}: logits and embeddings differ from transformers' {dtype} by at most {largest:.1e}"
                else:
                    equal = sum(ours == theirs for ours, theirs in pairs)
                    yield f"{title}: {equal} of {len(pairs)} captions equal transformers' {dtype}"


def picture(seed: int) -> bytes:
    """A JPEG file of noise that has a photograph's mix of large shapes and fine detail."""
    rng = np.random.default_rng(seed)
    width, height = PICTURE_SIZE
    scene = np.zeros((height, width, 3))
    for cells in (3, 8, 24, 80, 240):  # the finer, the fainter
        noise = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), np.uint8))
        scene += (np.asarray(noise.resize(PICTURE_SIZE, Image.Resampling.BICUBIC)) - 127.5) * cells**-0.5
    buffer = BytesIO()
    Image.fromarray(np.clip(scene + 127.5, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def prepare_checkpoint(cache: Path, architecture: str, layers: int | None, kind: str) -> Path:
    """The folder of a random checkpoint of a kind, a class of transformers, which is made if the cache lacks it."""
    name = architecture if kind == CAPTIONER else f"{architecture}-retrieval"
    folder = cache / (name if layers is None else f"{name}-{layers}-layers")
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            save_random_checkpoint(Path(made, "checkpoint"), architecture, layers, kind=kind)
            Path(made, "checkpoint").rename(folder)
    return folder


def build_repository(cache: Path, checkpoint: Path, device: str) -> Path:
    """Build a model repository in f32 for the checkpoint, as a user does. Raises ClickException if that fails."""
    repository = cache / f"{checkpoint.resolve().name}-{device}-f32"
    command: list[str | Path] = [sys.executable, "-m", "blipstream_build"]
    command += ["--checkpoint", checkpoint.resolve(), "--config", device, "--dtype", "f32", "--repository", repository]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.rpartition("Error: ")[2] or done.stdout).split()  # the error may take several lines
        raise click.ClickException(f"the build failed: {' '.join(lines)}")
    return repository


def in_dtype(repository: Path, dtype: str) -> Path:
    """Copy a repository, with another dtype in its config.json files. The copy shares large files."""
    other = repository.with_name(f"{repository.name.removesuffix('-f32')}-{dtype}")
    if other == repository:
        return repository
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(repository, other, copy_function=os.link)
    for path in other.glob("*/1/*/config.json"):
        settings = json.loads(path.read_text(encoding="utf-8")) | {"dtype": dtype}
        path.unlink()  # the original has the same file
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return other


def compare(
    architecture: str, checkpoint: Path | None, plan: BenchPlan, device: str, cache: Path, output: Path
) -> None:
    """Run the benchmark on one checkpoint; print the table, and write bench.json and bench.png."""
    bypass_proxies()
    transformers.utils.logging.disable_progress_bar()
    console = Console()

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    began = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
        tell(f"measuring {architecture or checkpoint} on {device}")
        with console.status("") as status:
            say = status.update if console.is_terminal else tell
            say("preparing the checkpoint")
            kind = RETRIEVER if plan.subject == "matching" else CAPTIONER
            folder = checkpoint or prepare_checkpoint(cache, architecture, plan.layers, kind)
            say("building the model repository")
            built = build_repository(cache, folder, device)
            if not (matches if kind == RETRIEVER else captions)(built):
                raise click.ClickException(f"{folder} is not for {plan.subject}: give another --checkpoint or --what")
            repositories = {dtype: in_dtype(built, dtype) for dtype in plan.dtypes}
            if plan.subject == ADAPTERS:
                for line in adapter_costs(repositories, plan, device, say):
                    tell(line)
                return
            benchmark = Benchmark(plan, device, folder, repositories)
            benchmark.run(say, tell)
    except BrokenProcessPool as exc:
        raise click.ClickException("the process of a system died: is there enough memory for all of them?") from exc
    except (BlipstreamError, ClientError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    name = str(checkpoint) if checkpoint else f"{folder.name}, random weights"
    packages = versions(("torch", "transformers", "openvino", "blipstream"))
    result = {
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "versions": {"checkpoint": name, **packages, "tritonserver": benchmark.triton_version},
        "rows": [asdict(measurement) for measurement in benchmark.measurements],
    }
    parts = ["bench", plan.subject.replace("captions", ""), architecture.replace("base", "")]
    stem = "-".join(filter(None, parts))
    (output / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    chart(result, output / f"{stem}.png")
    console.print(terminal_table(result))
    for line in (*benchmark.agreement(), *costs(benchmark.measurements)):
        tell(line)
    tell(f"all figures, after {time.monotonic() - began:.0f} s: {output}/{stem}.json")
    tell(f"chart: {output}/{stem}.png (open it with an image viewer)")
