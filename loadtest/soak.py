# SPDX-License-Identifier: Apache-2.0
"""The soak test: caption many images beside difficult clients, and see that the server gives back what it took.

python loadtest/soak.py --images 200000

`blipstream bulk` captions the images on a server of our own. Beside it come the difficult clients, one kind after the
other. After each round of them is a pause, in which bulk goes on alone and every process is measured. The test fails if
an image is lost, captioned twice or captioned otherwise than an equal one, if a difficult client gets an answer that it
should not, or if memory, files, threads or shared memory grow.

A process's memory goes up and down, as holes in its heap come and go: preprocess holds 73 to 87 MB without a trend. So
growth is this: the least that a pause of the second half finds is more than the most that one of the first half found.

Memory is what each process alone has written (private dirty pages). What it only mapped, as the code of libraries, the
system takes back and reads anew whenever it likes.

OpenVINO and oneDNN keep kernels for every batch size that they met, and Triton keeps room for the largest tensors. So
that this does not pass for growth, the models meet every size before the first round, with full queues.
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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from statistics import median

import click
import grpc
import psutil
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import service_pb2, service_pb2_grpc

import difficult_clients
from blipstream.command_line import OutputFile
from blipstream.errors import BlipstreamError, ServerError
from blipstream.files import SAMPLES
from blipstream.finite import FiniteRange
from blipstream.images import worker
from blipstream.server.network import bypass_proxies
from blipstream.server.proc import STUB
from blipstream.server.triton import TritonServer
from blipstream.server.workspace import SHARED_MEMORY
from blipstream_bench.signals import stop_on_signals
from blipstream_loadtest import options
from blipstream_loadtest.collector import Statistics, Unavailable, family, group_members
from raw_requests import FORM, caption_body, caption_request

SHARD = 1000  # images of a tar file
AT_ONCE = 4  # batches that are sent together before the first round
PAUSE_SECONDS = 25.0  # after each round of difficult clients,
SETTLE_SECONDS = 5.0  # of which so many pass before the first sample
PERIOD = 2.0  # seconds from one sample to the next
COUNTED = "decoder"  # the model whose successes are captions
IMAGE_WORKERS = "image workers"  # processes that preprocess starts for slow images, and ends when one takes too long


@dataclass
class Difficult:
    """A kind of difficult client: what one visit does, and the answers that it may get."""

    visit: Callable[[TritonServer, bytes], Counter[str]]  # with an image to send
    due: set[str]


def send_forms(server: TritonServer, image: bytes) -> Counter[str]:
    """Post large images with the type that curl gives any body unless told otherwise."""
    body, headers = caption_body(image + os.urandom(5 << 20))
    return difficult_clients.post(server.http_url, body, headers | FORM, times=5)


def send_compressed(server: TritonServer, image: bytes) -> Counter[str]:
    """Send whole requests that are compressed, over HTTP and gRPC.

    Broken ones are left out. Of a compressed body whose JSON it cannot parse, Triton 2.51 never frees what it unpacked,
    which nothing of ours can prevent (docs/security.md): any soak would find that growth.
    """
    image += bytes(20 << 20)  # of which gzip makes 20 KB
    found = difficult_clients.post(server.http_url, *caption_body(image, compress=True), times=5)
    return found + difficult_clients.send_compressed(server.grpc_url, image, times=5)


DIFFICULT = {
    "hang-ups": Difficult(
        lambda server, image: difficult_clients.hang_up(server.grpc_url, image, times=100),
        {"hung up"},
    ),
    "give-ups": Difficult(
        lambda server, image: difficult_clients.give_up(server.grpc_url, image, seconds=10, rate=80),
        {"OK", "CANCELLED", "UNAVAILABLE"},
    ),
    "a huge request": Difficult(
        lambda server, image: difficult_clients.ask_for_much(server.grpc_url, image, rows=64, beams=10),
        {"OK", "UNAVAILABLE"},
    ),
    "forms": Difficult(send_forms, {"200", "503"}),
    "compressed requests": Difficult(send_compressed, {"200", "503", "OK", "UNAVAILABLE"}),
    "many chunks": Difficult(lambda server, _: difficult_clients.post_chunks(server.http_url, 300_000), {"500"}),
    "idle connections": Difficult(
        lambda server, _: difficult_clients.connect_idly(
            (server.http_url, server.grpc_url, server.metrics_url), connections=1100, seconds=5
        ),
        {"connected"},
    ),
    # last, so that there are image workers in every pause
    "slow images": Difficult(
        lambda server, _: difficult_clients.send_slow_images(server.grpc_url),
        {"OK", "INVALID_ARGUMENT", "UNAVAILABLE"},
    ),
}


@dataclass
class Footprint:
    """What one process, or all shared memory, holds at a moment."""

    mb: float
    files: int = 0
    threads: int = 0

    def __add__(self, other: "Footprint") -> "Footprint":
        return Footprint(self.mb + other.mb, self.files + other.files, self.threads + other.threads)


@dataclass
class Sample:
    """The footprint of each process in a pause, after so many captions."""

    pause: int
    captions: int
    footprints: dict[str, Footprint]


@dataclass
class Visits:
    """Sends the difficult clients in a thread, round after round with pauses between, until it is left."""

    server: TritonServer
    kinds: dict[str, Difficult]
    image: bytes
    pause: int = 0  # the number of the present pause, or of the one that comes next
    present: str = ""  # the kind that is there now, or was before the present pause
    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _calm_since: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Visits":
        self._thread = threading.Thread(target=self._run, name="visits")
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def calm(self) -> bool:
        """Whether it is a pause, and what the last client left has had time to go."""
        since = self._calm_since
        return since is not None and time.monotonic() > since + SETTLE_SECONDS

    def undue(self) -> list[str]:
        """The answers that no client of their kind should have got."""
        return [
            f"{name} got {answer} {count} times"
            for name, answers in self.answers.items()
            for answer, count in answers.items()
            if answer not in self.kinds[name].due
        ]

    def _run(self) -> None:
        while not self._stop.is_set():
            for name, kind in self.kinds.items():
                self.present = name
                try:
                    self.answers[name] += kind.visit(self.server, self.image)
                except (grpc.RpcError, grpc.FutureTimeoutError, OSError) as error:
                    self.answers[name][f"{type(error).__name__}"] += 1
                if self._stop.is_set():
                    return
            self._calm_since = time.monotonic()
            self._stop.wait(PAUSE_SECONDS)
            self._calm_since = None
            self.pause += 1


@dataclass
class Sampler:
    """Measures the server's and the client's processes in each pause, in a thread, until it is left."""

    server: TritonServer
    client: int
    visits: Visits
    samples: list[Sample] = field(default_factory=list)
    captions: int = 0  # made so far
    most_workers: int = 0  # image workers at a time
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Sampler":
        self._thread = threading.Thread(target=self._run, name="sampler")
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
                self.captions = statistics.models()[COUNTED]["success"] - before
            pause = self.visits.pause
            found = self._measure() if self.visits.calm else {}
            if found and self.visits.calm and self.visits.pause == pause:  # still
                self.samples.append(Sample(pause, self.captions, found))

    def _measure(self) -> dict[str, Footprint]:
        found = {"shared memory": _shared_memory()}
        workers = 0
        for pid in [*group_members(self.server.pid), *family([self.client])]:
            with suppress(psutil.Error):  # it may end meanwhile
                process = psutil.Process(pid)
                memory = sum(area.private_dirty for area in process.memory_maps(grouped=False))
                footprint = Footprint(memory / 2**20, process.num_fds(), process.num_threads())
                title = _title(process)
                workers += title == IMAGE_WORKERS
                found[title] = found[title] + footprint if title in found else footprint
        self.most_workers = max(self.most_workers, workers)
        return found


def _shared_memory() -> Footprint:
    regions = [region for region in SHARED_MEMORY.glob(f"blipstream-{os.getpid()}-*") if region.is_file()]
    return Footprint(sum(region.stat().st_size for region in regions) / 2**20, len(regions))


def _title(process: psutil.Process) -> str:
    """A name that says which process of ours it is."""
    program, *arguments = process.cmdline() or [process.name()]
    if Path(program).name == STUB:
        return f"{Path(arguments[0]).parents[1].name} (stub)"
    if worker.__name__ in arguments:
        return IMAGE_WORKERS
    return "blipstream bulk" if "blipstream_client" in arguments else Path(program).name


def meet_batches(server: TritonServer) -> None:
    """Send batches of every size, from the largest to the smallest and several at a time, to be captioned in a word."""
    image = min(SAMPLES.glob("*.jpg")).read_bytes()
    with (
        grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        config = stub.ModelConfig(service_pb2.ModelConfigRequest(name="caption")).config
        for size in range(config.max_batch_size, 0, -1):
            list(pool.map(stub.ModelInfer, [caption_request(image, rows=size, max_tokens=1)] * AT_ONCE))


def write_shards(folder: Path, images: int) -> int:
    """Write tar files of so many images in all; return how many different pictures they show, in turn."""
    pictures = [file.read_bytes() for file in sorted(SAMPLES.glob("*.jpg"))]
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


def halves(samples: list[Sample], settled: int) -> tuple[list[list[Sample]], list[list[Sample]]]:
    """The samples of each pause that began after `settled` captions: the earlier pauses, and as many later ones or one
    more. None if there are not two.
    """
    pauses: dict[int, list[Sample]] = {}
    for sample in samples:
        pauses.setdefault(sample.pause, []).append(sample)
    counted = [pause for pause in pauses.values() if pause[0].captions >= settled]
    middle = len(counted) // 2
    return (counted[:middle], counted[middle:]) if middle else ([], [])


def medians(samples: list[Sample]) -> dict[str, Footprint]:
    """The median footprint of each process that is in all samples."""
    return _together([sample.footprints for sample in samples], median)


def bounds(pauses: list[list[Sample]], choose: Callable[[Iterable[float]], float]) -> dict[str, Footprint]:
    """Of the medians of each pause, the least or the most of each number, as `choose` is min or max."""
    return _together([medians(pause) for pause in pauses], choose)


def _together(found: list[dict[str, Footprint]], choose: Callable[[Iterable[float]], float]) -> dict[str, Footprint]:
    names = [name for name in (found[0] if found else {}) if all(name in each for each in found)]
    return {
        name: Footprint(
            choose(each[name].mb for each in found),
            round(choose(each[name].files for each in found)),
            round(choose(each[name].threads for each in found)),
        )
        for name in names
    }


def compare(first: dict[str, Footprint], last: dict[str, Footprint], growth: float) -> list[str]:
    """What holds more memory, files or threads than before, by more than that part of them.

    Image workers come and go, so each pause has others.
    """
    return [
        f"{name} holds at least {after.mb:.1f} MB, {after.files} files and {after.threads} threads in the second half, "
        f"and held at most {before.mb:.1f}, {before.files} and {before.threads} in the first"
        for name, before, after in _both(first, last)
        if name != IMAGE_WORKERS
        and any(has > had * (1 + growth) for has, had in zip(astuple(after), astuple(before), strict=True))
    ]


def footprint_table(first: dict[str, Footprint], last: dict[str, Footprint]) -> Table:
    """The most of the first half and the least of the second, side by side."""
    table = Table("process", "most MB in 1st half", "least MB in 2nd", "growth", "files", "threads")
    for name, before, after in _both(first, last):
        table.add_row(
            name,
            f"{before.mb:.1f}",
            f"{after.mb:.1f}",
            f"{after.mb / before.mb - 1:+.1%}" if before.mb else "",
            f"{before.files} → {after.files}",
            f"{before.threads} → {after.threads}",
        )
    return table


def answer_table(answers: dict[str, Counter[str]]) -> Table:
    """What the difficult clients got."""
    table = Table("difficult clients", "answers")
    for name, counts in answers.items():
        table.add_row(name, ", ".join(f"{answer} {count:,}" for answer, count in counts.most_common()))
    return table


def _both(first: dict[str, Footprint], last: dict[str, Footprint]) -> list[tuple[str, Footprint, Footprint]]:
    return [(name, first[name], last[name]) for name in first if name in last]


def bulk(server: TritonServer, images: Path, rows: Path) -> subprocess.Popen[bytes]:
    """`blipstream bulk` on the tar files of a folder."""
    command = [sys.executable, "-m", "blipstream_client", "bulk", f"{images}/*.tar"]
    return subprocess.Popen([*command, "--url", server.grpc_url, "--output", str(rows)])


def wait(client: subprocess.Popen[bytes], server: TritonServer, visits: Visits) -> int:
    """Wait for bulk and return its exit status. Raises ServerError if the server dies before."""
    while True:
        try:
            return client.wait(PERIOD)
        except subprocess.TimeoutExpired:
            present = visits.present
            try:
                server.check()
            except ServerError as error:
                raise ServerError(f"{error}; round {visits.pause + 1}, at or after: {present}") from error


@click.command(context_settings=options.SETTINGS)
@options.repository("What the server serves.")
@click.option("--config", default="cpu", help="Its configuration.")
@click.option("--images", type=click.IntRange(min=1), default=200_000, help="Captions to make.")
@click.option("--settled", type=click.IntRange(min=1), default=10_000, help="Captions after which nothing may grow.")
@click.option("--growth", type=FiniteRange(min=0), default=0.02, help="What may, all the same, as a part of it.")
@click.option("--client", "clients", type=click.Choice(list(DIFFICULT)), multiple=True, help="These, instead of all.")
@click.option("--output", type=OutputFile(), help="A JSON file with every sample.")
def main(
    repository: Path,
    config: str,
    images: int,
    settled: int,
    growth: float,
    clients: tuple[str, ...],
    output: Path | None,
) -> None:
    """Caption many images beside difficult clients, and compare what each process holds early and late.

    The exit status is 1 if anything has grown, or an image has not exactly one right caption.
    """
    bypass_proxies()
    if images < 2 * settled:
        raise click.ClickException(f"--images must be at least twice --settled, which is {settled}, not {images}")
    kinds = {name: kind for name, kind in DIFFICULT.items() if name in clients or not clients}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pictures = write_shards(folder, images)
            image = min(SAMPLES.glob("*.jpg")).read_bytes()
            with TritonServer(repository, config=config, http_port=0, grpc_port=0, metrics_port=0) as server:
                meet_batches(server)
                began, rows = time.monotonic(), folder / "captions.jsonl"
                with bulk(server, folder, rows) as client:
                    try:
                        with Visits(server, kinds, image) as visits, Sampler(server, client.pid, visits) as sampler:
                            status = wait(client, server, visits)
                    finally:
                        client.terminate()
                seconds = time.monotonic() - began
                server.check()
            wrong = f"bulk ended with status {status}" if status else check_rows(rows, images, pictures)
    except BlipstreamError as exc:
        raise click.ClickException(str(exc)) from exc
    if output:
        output.write_text(json.dumps([asdict(sample) for sample in sampler.samples], indent=1) + "\n", encoding="utf-8")
    report(sampler, seconds, settled, growth, wrong)


def report(sampler: Sampler, seconds: float, settled: int, growth: float, wrong: str) -> None:
    """Print what came out. Raises ClickException if anything is wrong."""
    console = Console()
    console.print(answer_table(sampler.visits.answers))
    earlier, later = halves(sampler.samples, settled)
    problems = ([wrong] if wrong else []) + sampler.visits.undue()
    if earlier:
        first, last = bounds(earlier, max), bounds(later, min)
        console.print(footprint_table(first, last))
        problems += compare(first, last, growth)
    else:
        problems.append(f"there were not two pauses after {settled} captions: ask for more images")
    if sampler.most_workers > (cores := len(os.sched_getaffinity(0))):
        problems.append(f"{sampler.most_workers} image workers ran at a time, on {cores} cores")
    console.print(f"{sampler.captions:,} captions and {sampler.visits.pause} rounds in {seconds:.0f} s")
    if problems:
        raise click.ClickException("; ".join(problems))


if __name__ == "__main__":
    stop_on_signals()
    main()
