# SPDX-License-Identifier: Apache-2.0
"""The side-by-side benchmark: transformers, the bare engine, and Blipstream through Triton, in one run on one machine.

python loadtest/bench.py --device cpu

Writes bench.json and bench.png, and prints a table. Each system, in each number format, has a process of its own;
they take turns, and what counts is the median of the rounds, so that ratios hold on a machine that others use, too.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console

from blipstream.errors import BlipstreamError
from blipstream.server.network import bypass_proxies
from blipstream_client import BlipstreamError as ClientError
from cli import RESULTS, ROOT
from machine import machine, versions
from random_checkpoint import ARCHITECTURES, save_random_checkpoint
from report import PICTURE_SIZE, STRATEGIES, Row, chart, markdown, read, terminal_table
from systems import SYSTEMS, BareEngine, System, Transformers, Triton

CACHE = ROOT / "loadtest" / ".bench_cache"  # random checkpoints and what was built of them; git ignores it
COMPARED = 4  # images whose captions are held against transformers'

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    dtypes: tuple[str, ...]
    batches: tuple[int, ...]  # that the best one is searched among
    in_flight: int  # requests to Triton at once
    rounds: int
    seconds: float  # of each measurement of a round, at least one batch
    images: int  # different ones
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    layers: int | None = None  # of a shallow checkpoint


PLANS = {
    "cpu": Plan(("f32", "bf16"), (1, 4, 8, 16), in_flight=32, rounds=3, seconds=3, images=64),
    "cuda": Plan(("f32", "f16"), (1, 8, 32, 64, 128), in_flight=256, rounds=5, seconds=5, images=512),
}
DEFAULT_ARCHITECTURES = {"cpu": ("base",), "cuda": ("base", "large")}
QUICK = Plan(("f32",), (2,), in_flight=2, rounds=1, seconds=0, images=COMPARED, layers=2)


class Worker:
    """A system in a process of its own."""

    def __init__(self, kind: type[System], checkpoint: Path, repository: Path, device: str, dtype: str) -> None:
        self.kind = kind
        self.dtype = dtype
        self.title = f"{kind.name} {dtype}"
        self._pool = ProcessPoolExecutor(  # Ctrl-C is for us, who then close each system in order
            1, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        try:
            self.call(_open, kind.name, checkpoint, repository, device, dtype)
        except BaseException:
            self._pool.shutdown()
            raise

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function there."""
        return self._pool.submit(function, *args, **kwargs).result()

    def ask(self, method: str, *args: object) -> Any:  # noqa: ANN401
        """Call a method of the system."""
        return self.call(_ask, method, *args)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.ask("close")
        finally:
            self._pool.shutdown()


_system: System  # in a worker's process, the one that it holds


def _open(name: str, checkpoint: Path, repository: Path, device: str, dtype: str) -> None:
    global _system
    _system = SYSTEMS[name](checkpoint, repository, device, dtype)
    _system.load()


def _ask(method: str, *args: object) -> Any:  # noqa: ANN401
    return getattr(_system, method)(*args)


class Benchmark:
    """One run: what is compared, how long, and what came out."""

    def __init__(self, plan: Plan, device: str, checkpoint: Path, repositories: dict[str, Path]) -> None:
        self.plan = plan
        self.device = device
        self.checkpoint = checkpoint
        self.repositories = repositories  # by dtype
        self.images = [picture(seed) for seed in range(plan.images)]
        self.rows: list[Row] = []
        self.captions: dict[tuple[str, str], dict[str, list[str]]] = {}  # by strategy and dtype, then by system
        self.triton_version = ""

    def run(self, say: Callable[[str], None]) -> None:
        """Measure everything; `say` is told what is being done."""
        kinds = [(kind, dtype) for kind in SYSTEMS.values() for dtype in self.plan.dtypes]
        batches = {key: self._best_batches(*key, say) for key in kinds}
        with ExitStack() as stack:
            workers = []
            for key in kinds:
                say(f"{key[0].name} {key[1]}: starting")
                workers.append((stack.enter_context(self._worker(*key)), batches[key]))
            self.triton_version = next(w.ask("version") for w, _ in workers if w.kind is Triton)
            for strategy in self.plan.strategies:
                self._measure(workers, strategy, say)

    def _worker(self, kind: type[System], dtype: str) -> Worker:
        return Worker(kind, self.checkpoint, self.repositories[dtype], self.device, dtype)

    def _best_batches(self, kind: type[System], dtype: str, say: Callable[[str], None]) -> dict[str, int]:
        """The batch size with the highest throughput, by strategy, found in a process that ends afterwards."""
        if kind is Triton:
            return dict.fromkeys(self.plan.strategies, self.plan.in_flight)
        if len(self.plan.batches) == 1:
            return dict.fromkeys(self.plan.strategies, self.plan.batches[0])
        best: dict[str, int] = {}
        candidates = self.plan.batches
        with self._worker(kind, dtype) as worker:
            for strategy in self.plan.strategies:
                beams = STRATEGIES[strategy]
                worker.ask("prepare", self.images[:1], beams)
                rates: dict[int, float] = {}
                for batch in candidates:
                    say(f"{worker.title}, {strategy}: trying batches of {batch}")
                    rates[batch] = worker.ask("throughput", self.images, beams, batch, 0)
                best[strategy] = max(candidates, key=rates.__getitem__)
                # more beams are more rows: no larger batch will do better, one that is smaller may
                index = candidates.index(best[strategy])
                candidates = candidates[max(index - 1, 0) : index + 1]
        return best

    def _measure(self, workers: list[tuple[Worker, dict[str, int]]], strategy: str, say: Callable[[str], None]) -> None:
        beams, seconds = STRATEGIES[strategy], self.plan.seconds
        rates: dict[str, list[float]] = {worker.title: [] for worker, _ in workers}
        times: dict[str, list[float]] = {worker.title: [] for worker, _ in workers}
        for worker, _ in workers:
            say(f"{worker.title}, {strategy}: warming up")
            captions = worker.ask("prepare", self.images[:COMPARED], beams)
            self.captions.setdefault((strategy, worker.dtype), {})[worker.kind.name] = captions
        for turn in range(self.plan.rounds):
            for worker, batches in workers:
                say(f"{worker.title}, {strategy}: round {turn + 1} of {self.plan.rounds}")
                rates[worker.title].append(worker.ask("throughput", self.images, beams, batches[strategy], seconds))
                times[worker.title] += worker.ask("latency", self.images, beams, seconds)
        for worker, batches in workers:
            self.rows.append(
                Row(
                    system=worker.kind.name,
                    device=self.device,
                    dtype=worker.dtype,
                    strategy=strategy,
                    batch=batches[strategy],
                    images_per_s=round(statistics.median(rates[worker.title]), 3),
                    p50_ms=round(float(np.percentile(times[worker.title], 50)), 1),
                    p99_ms=round(float(np.percentile(times[worker.title], 99)), 1),
                    peak_mb=round(worker.ask("peak_mb")),
                )
            )

    def agreement(self) -> Iterator[str]:
        """For each system and dtype, how many captions are those of transformers in that dtype."""
        for kind in (BareEngine, Triton):
            for dtype in self.plan.dtypes:
                pairs = [
                    pair
                    for strategy in self.plan.strategies
                    for pair in zip(
                        self.captions[strategy, dtype][kind.name],
                        self.captions[strategy, dtype][Transformers.name],
                        strict=True,
                    )
                ]
                equal = sum(ours == theirs for ours, theirs in pairs)
                yield f"{kind.name} {dtype}: {equal} of {len(pairs)} captions equal transformers' {dtype}"


def picture(seed: int) -> bytes:
    """A JPEG file that looks like nothing, yet has a photograph's mix of large shapes and fine detail."""
    rng = np.random.default_rng(seed)
    width, height = PICTURE_SIZE
    scene = np.zeros((height, width, 3))
    for cells in (3, 8, 24, 80, 240):  # ever finer, ever fainter
        noise = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), np.uint8))
        scene += (np.asarray(noise.resize(PICTURE_SIZE, Image.Resampling.BICUBIC)) - 127.5) * cells**-0.5
    buffer = BytesIO()
    Image.fromarray(np.clip(scene + 127.5, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def prepare_checkpoint(cache: Path, architecture: str, layers: int | None) -> Path:
    """A random checkpoint, made once."""
    folder = cache / (architecture if layers is None else f"{architecture}-{layers}-layers")
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            save_random_checkpoint(Path(made, "checkpoint"), architecture, layers)
            Path(made, "checkpoint").rename(folder)
    return folder


def build_repository(cache: Path, checkpoint: Path, device: str) -> Path:
    """A model repository for the checkpoint, built and verified as a user builds it, in f32."""
    repository = cache / f"{checkpoint.resolve().name}-{device}-f32"
    command: list[str | Path] = [sys.executable, ROOT / "build" / "build_repository.py"]
    command += ["--checkpoint", checkpoint.resolve(), "--config", device, "--dtype", "f32", "--repository", repository]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise click.ClickException(f"the build failed: {''.join(reason).removeprefix('error: ')}")
    return repository


def in_dtype(repository: Path, dtype: str) -> Path:
    """The same repository in another number format, which its config.json files name. Large files are shared."""
    other = repository.with_name(f"{repository.name.removesuffix('-f32')}-{dtype}")
    if other == repository:
        return repository
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(repository, other, copy_function=os.link)
    for path in other.glob("*/1/*/config.json"):
        settings = json.loads(path.read_text(encoding="utf-8")) | {"dtype": dtype}
        path.unlink()  # it is the original's, too
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return other


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Run through `make bench` as well.")
@click.option("--device", type=click.Choice(list(PLANS)), default="cpu", show_default=True)
@click.option(
    "--architecture",
    "architectures",
    type=click.Choice(list(ARCHITECTURES)),
    multiple=True,
    help="Of a checkpoint with random weights; may be repeated. If absent, base, and on a GPU large, too.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a checkpoint instead of random weights.",
)
@click.option("--quick", is_flag=True, help="A few images, f32 only and two layers: whether it works, not how fast.")
@click.option(
    "--strategy",
    "strategies",
    type=click.Choice(list(STRATEGIES)),
    multiple=True,
    help="May be repeated; all of them if absent.",
)
@click.option("--seconds", type=click.FloatRange(min=0), help="Of each measurement, of which there are some 100.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=CACHE,
    show_default="loadtest/.bench_cache",
    help="Folder for random checkpoints and what is built of them.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    show_default="loadtest/results",
    help="Folder for bench.json and bench.png.",
)
@click.option(
    "--markdown",
    "shown",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure nothing; print this bench.json as Markdown.",
)
def main(
    device: str,
    architectures: tuple[str, ...],
    checkpoint: Path | None,
    quick: bool,
    strategies: tuple[str, ...],
    seconds: float | None,
    cache: Path,
    output: Path,
    shown: Path | None,
) -> None:
    """Compare transformers, the bare engine, and Blipstream through Triton, side by side on this machine."""
    bypass_proxies()
    if shown:
        click.echo(markdown(read(shown)))
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            "--device cuda needs an NVIDIA GPU, and PyTorch finds none: use --device cpu, "
            "or install the driver and a PyTorch with CUDA"
        )
    plan = QUICK if quick else PLANS[device]
    if seconds is not None:
        plan = replace(plan, seconds=seconds)
    if strategies:  # in ascending order, since a process's peak memory never falls
        plan = replace(plan, strategies=tuple(name for name in STRATEGIES if name in strategies))
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    names = architectures or (DEFAULT_ARCHITECTURES[device] if not checkpoint else ("",))
    for name in names:
        compare(name, checkpoint, plan, device, cache, output, console)


def compare(
    architecture: str, checkpoint: Path | None, plan: Plan, device: str, cache: Path, output: Path, console: Console
) -> None:
    """Run the benchmark on one checkpoint, and show and write what came out."""
    began = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with console.status("preparing the checkpoint") as status:
            folder = checkpoint or prepare_checkpoint(cache, architecture, plan.layers)
            status.update("building the model repository")
            built = build_repository(cache, folder, device)
            repositories = {dtype: in_dtype(built, dtype) for dtype in plan.dtypes}
            benchmark = Benchmark(plan, device, folder, repositories)
            benchmark.run(status.update if console.is_terminal else click.echo)
    except BrokenProcessPool as exc:
        raise click.ClickException("a system's process died: is there memory enough for all of them?") from exc
    except (BlipstreamError, ClientError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    name = str(checkpoint) if checkpoint else f"{folder.name}, random weights"
    packages = versions(("torch", "transformers", "openvino", "blipstream"))
    result = {
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "versions": {"checkpoint": name, **packages, "tritonserver": benchmark.triton_version},
        "rows": [asdict(row) for row in benchmark.rows],
    }
    stem = "bench" if architecture in ("", "base") else f"bench-{architecture}"
    (output / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    chart(result, output / f"{stem}.png")
    console.print(terminal_table(result))
    for line in benchmark.agreement():
        console.print(line, highlight=False)
    console.print(f"{output}/{stem}.json and {stem}.png, after {time.monotonic() - began:.0f} s", markup=False)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stop the systems, too
    main()
