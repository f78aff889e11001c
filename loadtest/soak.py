# SPDX-License-Identifier: Apache-2.0
"""What many captions leave behind: `blipstream bulk` against a server of our own, whose processes are weighed.

python loadtest/soak.py --images 200000

Memory is what each process alone has written (private dirty pages): what it only mapped, as the code of libraries, the
system takes back and reads anew whenever it likes. Shared memory is counted apart. The images are few, and equal ones
must get equal captions.

OpenVINO and oneDNN keep kernels for every batch size that they met, and Triton keeps the room for tensors that it once
needed. So that this does not pass for growth, the models meet every size before the first weighing, with full queues.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import median

import click
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import InferenceServerClient, InferInput

from blipstream.errors import BlipstreamError
from blipstream.server.installation import ROOT
from blipstream.server.network import bypass_proxies
from blipstream.server.proc import STUB
from blipstream.server.triton import TritonServer
from blipstream.server.welcome import SAMPLES
from blipstream.server.workspace import SHARED_MEMORY
from collector import Statistics, Unavailable, family, group_members

SHARD = 1000  # images of a tar file
AT_ONCE = 4  # batches that are sent together before the first weighing
PERIOD = 2.0  # seconds from one weighing to the next
COUNTED = "decoder"  # the model whose successes are captions


@dataclass
class Weight:
    """What one process, or the shared memory, holds at a moment."""

    mb: float
    files: int = 0
    threads: int = 0


@dataclass
class Sample:
    """All of them after so many captions."""

    captions: int
    weights: dict[str, Weight]


@dataclass
class Scales:
    """Weighs the server's and the client's processes in a thread, until it is left."""

    server: TritonServer
    client: int
    samples: list[Sample] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Scales":
        self._thread = threading.Thread(target=self._run, name="scales")
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        statistics = Statistics(self.server.grpc_url)
        before = statistics.models()[COUNTED]["success"]
        while not self._stop.wait(PERIOD):
            with suppress(Unavailable):  # busy
                captions = statistics.models()[COUNTED]["success"] - before
                self.samples.append(Sample(captions, dict(self._weigh())))

    def _weigh(self) -> Iterator[tuple[str, Weight]]:
        for pid in [*group_members(self.server.pid), *family([self.client])]:
            with suppress(psutil.Error):  # it may end meanwhile
                process = psutil.Process(pid)
                memory = sum(area.private_dirty for area in process.memory_maps(grouped=False))
                yield _title(process), Weight(memory / 2**20, process.num_fds(), process.num_threads())
        regions = [region for region in SHARED_MEMORY.glob(f"blipstream-{os.getpid()}-*") if region.is_file()]
        yield "shared memory", Weight(sum(region.stat().st_size for region in regions) / 2**20, len(regions))


def _title(process: psutil.Process) -> str:
    """A name that says which process of ours it is."""
    program, *arguments = process.cmdline() or [process.name()]
    if Path(program).name == STUB:
        return f"{Path(arguments[0]).parents[1].name} (stub)"
    return "blipstream bulk" if "blipstream_client" in arguments else Path(program).name


def meet_batches(server: TritonServer) -> None:
    """Send batches of every size, from the largest to the smallest and several at a time, to be captioned in a word."""
    picture = next((ROOT / SAMPLES).glob("*.jpg")).read_bytes()
    with (
        closing(InferenceServerClient(server.grpc_url.removeprefix("grpc://"))) as client,
        ThreadPoolExecutor() as pool,
    ):
        largest = int(client.get_model_config("caption").config.max_batch_size)
        for size in range(largest, 0, -1):
            images, tokens = np.full((size, 1), picture, np.object_), np.ones((size, 1), np.int32)
            inputs = [InferInput("image", images.shape, "BYTES"), InferInput("max_tokens", tokens.shape, "INT32")]
            for tensor, data in zip(inputs, (images, tokens), strict=True):
                tensor.set_data_from_numpy(data)
            list(pool.map(lambda inputs: client.infer("caption", inputs), [inputs] * AT_ONCE))


def write_shards(folder: Path, images: int) -> int:
    """Tar files of so many images in all; how many different pictures they show, in turn."""
    pictures = [file.read_bytes() for file in sorted((ROOT / SAMPLES).glob("*.jpg"))]
    for first in range(0, images, SHARD):
        with tarfile.open(folder / f"{first:08}.tar", "w") as shard:
            for number in range(first, min(first + SHARD, images)):
                data = pictures[number % len(pictures)]
                info = tarfile.TarInfo(f"{number:08}.jpg")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    return len(pictures)


def check_rows(path: Path, images: int, pictures: int) -> str:
    """What is wrong with the captions, or nothing."""
    captions: dict[int, str] = {}
    seen: Counter[int] = Counter()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            number = int(row["name"].rpartition("/")[2].removesuffix(".jpg"))
            seen[number] += 1
            if row["error"]:
                return f"image {number} failed: {row['error']}"
            if captions.setdefault(number % pictures, row["caption"]) != row["caption"]:
                return f"image {number} got {row['caption']!r}, its picture {captions[number % pictures]!r} before"
    if len(seen) != images or max(seen.values()) > 1:
        return f"{images} images got {seen.total()} rows for {len(seen)} of them"
    return ""


def around(samples: list[Sample], captions: int, span: int) -> dict[str, Weight]:
    """The median of each weight while that many captions, and up to `span` more, had been made."""
    near = [each.weights for each in samples if captions <= each.captions <= captions + span]
    names = [name for name in (near[0] if near else {}) if all(name in each for each in near)]
    return {
        name: Weight(
            median(each[name].mb for each in near),
            round(median(each[name].files for each in near)),
            round(median(each[name].threads for each in near)),
        )
        for name in names
    }


def compare(first: dict[str, Weight], last: dict[str, Weight], growth: float) -> list[str]:
    """What holds more memory, files or threads than before, by more than that part of them."""
    return [
        f"{name} holds {after.mb:.1f} MB, {after.files} files and {after.threads} threads at the end, "
        f"{before.mb:.1f}, {before.files} and {before.threads} near the beginning"
        for name, before, after in _both(first, last)
        if any(has > had * (1 + growth) for has, had in zip(astuple(after), astuple(before), strict=True))
    ]


def as_table(first: dict[str, Weight], last: dict[str, Weight], settled: int, images: int) -> Table:
    """Both weighings, side by side."""
    table = Table("process", f"MB after {settled:,}", f"MB after {images:,}", "growth", "files", "threads")
    for name, before, after in _both(first, last):
        table.add_row(
            name,
            f"{before.mb:.1f}",
            f"{after.mb:.1f}",
            f"{after.mb / before.mb - 1:+.1%}",
            f"{before.files} → {after.files}",
            f"{before.threads} → {after.threads}",
        )
    return table


def _both(first: dict[str, Weight], last: dict[str, Weight]) -> list[tuple[str, Weight, Weight]]:
    return [(name, first[name], last[name]) for name in first if name in last]


@click.command(context_settings={"show_default": True})
@click.option("--repository", type=click.Path(path_type=Path), default=ROOT / "model_repository", help="Models.")
@click.option("--config", default="cpu", help="Runtime.")
@click.option("--images", type=click.IntRange(min=1), default=200_000, help="Captions to make.")
@click.option("--settled", type=click.IntRange(min=1), default=10_000, help="Captions after which nothing may grow.")
@click.option("--growth", default=0.02, help="What may, all the same, as a part of it.")
@click.option("--output", type=click.Path(path_type=Path), help="A JSON file with every weighing.")
def main(repository: Path, config: str, images: int, settled: int, growth: float, output: Path | None) -> None:
    """Caption many images and compare what every process holds at the end with what it held near the beginning."""
    bypass_proxies()
    if images < 2 * settled:
        raise click.ClickException(f"--images must be at least twice --settled, which is {settled}, not {images}")
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pictures = write_shards(folder, images)
            server = TritonServer(repository, config=config, http_port=0, grpc_port=0, metrics_port=0)
            with server:
                meet_batches(server)
                began = time.monotonic()
                rows = folder / "captions.jsonl"
                command = ["bulk", f"{folder}/*.tar", "--url", server.grpc_url, "--output", str(rows)]
                client = subprocess.Popen([sys.executable, "-m", "blipstream_client", *command])
                with Scales(server, client.pid) as scales:
                    status = client.wait()
                seconds = time.monotonic() - began
                server.check()
            wrong = f"bulk ended with status {status}" if status else check_rows(rows, images, pictures)
    except BlipstreamError as exc:
        raise click.ClickException(str(exc)) from exc
    if output:
        lines = [{"captions": s.captions} | {name: vars(w) for name, w in s.weights.items()} for s in scales.samples]
        output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    span, made = max(settled // 5, 1), max(sample.captions for sample in [Sample(0, {}), *scales.samples])
    first, last = around(scales.samples, settled, span), around(scales.samples, made - span, span)
    console.print(as_table(first, last, settled, made))
    console.print(f"{made:,} captions in {seconds:.0f} s, {made / seconds:.1f} a second")
    problems = [wrong] if wrong else compare(first, last, growth)
    if not first.keys() & last.keys():
        problems.append("the run was too short to weigh anything twice: ask for more images")
    if problems:
        raise click.ClickException("; ".join(problems))


if __name__ == "__main__":
    main()
