# SPDX-License-Identifier: Apache-2.0
"""Break a server under load in many ways, and report how it recovers: `python tests/chaos/run.py --help`.

Each experiment starts a supervised server with the demo's two checkpoints, and sends it images to be captioned or
matched without a pause. Then it breaks something, or sends difficult clients, and goes on until captions come again.
Every image must get its right caption.
If this machine does not permit an experiment, the table says so.
"""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(ROOT / "loadtest")]

from blipstream.server import proc, workspace  # noqa: E402
from blipstream_client import BlipstreamError, Client  # noqa: E402
from difficult_clients import (  # noqa: E402
    ask_for_much,
    connect_idly,
    give_up,
    hang_up,
    hang_up_on_overload,
    post,
    post_chunks,
    send_slow_images,
)
from raw_requests import FORM  # noqa: E402

SHARED_MEMORY = str(workspace.SHARED_MEMORY)
SAMPLES = ROOT / "build/demo/samples"
GOAL_SECONDS = 10  # from the end of a fault to captions
IMAGE_SECONDS = 120.0  # for an image to be captioned, whatever happens meanwhile
USERS = 8
MATCHING = 4  # every fourth user asks which of all captions matches best, and the others for a caption
STEADY_SECONDS = 1.0  # of load before and after
SET_CLOCK = "CHAOS_SET_CLOCK"
IDLE_CONNECTIONS = 1100  # more than the usual limit of open files
JUMP_SECONDS = 100
TMPFS = "mount -t tmpfs -o size={size} none {folder} && "


class NotRun(Exception):
    """This machine does not permit an experiment."""


@dataclass
class Load:
    """Users who send an image, insist on its caption or its match, and send the next."""

    url: str
    matches: bool = True  # whether the server can
    answers: list[str] = field(default_factory=list)  # "right", "wrong" or "lost", for each image
    wrong: list[tuple[str, str]] = field(default_factory=list)  # captions, and the right ones
    refusals: Counter[str] = field(default_factory=Counter)  # errors that the client raised after its retries
    times: list[float] = field(default_factory=list)  # when captions came, by time.monotonic()
    longest: float = 0.0  # seconds from an image to its caption
    _users: list[Future[None]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        captions = json.loads((SAMPLES / "captions.json").read_text())
        self._texts = list(captions.values())
        self._images = [((SAMPLES / name).read_bytes(), text) for name, text in captions.items()]
        self._client = Client(self.url, retries=5, timeout=20)
        self._executor = ThreadPoolExecutor(USERS)
        self._users += [self._executor.submit(self._use, user) for user in range(USERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._executor.shutdown()
        self._client.close()
        for user in self._users:
            user.result()  # raises if a user ended early, with an image that was not counted

    def _use(self, user: int) -> None:
        ask = self._match if self.matches and user % MATCHING == 0 else self._caption
        while not self._stop.is_set():
            user += 1
            image, expected = self._images[user % len(self._images)]
            self.answers.append(self._insist(ask, image + os.urandom(8), expected))

    def _caption(self, image: bytes) -> str:
        caption = self._client.caption(image).text
        self.times.append(time.monotonic())
        return caption

    def _match(self, image: bytes) -> str:
        return self._client.match(image, self._texts).best.text

    def _insist(self, ask: Callable[[bytes], str], image: bytes, expected: str) -> str:
        began = time.monotonic()
        while time.monotonic() < began + IMAGE_SECONDS:
            try:
                caption = ask(image)
            except BlipstreamError as error:
                self.refusals[f"{type(error).__name__}: {re.sub(r'[0-9]+', 'N', str(error))}"] += 1
                time.sleep(0.1)
            else:
                self.longest = max(self.longest, time.monotonic() - began)
                if caption == expected:
                    return "right"
                self.wrong.append((caption, expected))
                return "wrong"
        return "lost"

    def wait_for_captions(self, since: float, seconds: float = IMAGE_SECONDS) -> float:
        """Wait for the first caption after a time; return when it came, or infinity if it did not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if later := [at for at in list(self.times) if at > since]:
                return later[0]
            time.sleep(0.02)
        return float("inf")


@dataclass
class Served:
    """A supervised server in a process of its own."""

    process: subprocess.Popen[str]
    repository: Path
    http_url: str
    grpc_url: str
    metrics_url: str
    health_url: str

    @property
    def triton(self) -> int:
        return next(pid for pid in descendants(self.process.pid) if name_of(pid) == "tritonserver")

    def stub(self, model: str) -> int:
        return next(pid for pid in proc.processes_of_group(self.triton) if proc.stub_model(pid) == model)

    def restarts(self) -> Counter[str]:
        """By reason."""
        with urllib.request.urlopen(f"{self.health_url}/metrics") as page:
            found = re.findall(r'restarts_total\{reason="(\w+)"\} (\d+)', page.read().decode())
        return Counter({reason: int(count) for reason, count in found})

    def wait_for_restart(self, count: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.restarts().total() < count and time.monotonic() < deadline:
            time.sleep(0.02)


def descendants(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            yield child
            yield from descendants(child)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@contextmanager
def serving(repository: Path, folder: Path, *options: str, before: str = "") -> Iterator[Served]:
    """Start a supervised server. `before` is shell code that runs first, in a mount namespace of its own."""
    command = [sys.executable, "-m", "blipstream.server", f"--repository={repository}", *options]
    command += [f"--{port}-port=0" for port in ("http", "grpc", "metrics", "health")]
    if before:
        command = ["unshare", "--mount", "sh", "-c", before + 'exec "$@"', "sh", *command]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "TMPDIR": str(folder)}
    log = folder / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    with process:
        try:
            assert process.stdout
            told = ""
            while "\nhealth on " not in told:
                line = process.stdout.readline()
                if not line:
                    raise NotRun(log.read_text().strip())
                told += line
            yield Served(process, repository, *re.findall(r"\w+://[\w.:]+", told))
        finally:
            process.terminate()
            process.communicate()


Harm = Callable[[Served], float]  # does harm, and returns when that was over, by time.monotonic()


def signalled(target: str, number: signal.Signals) -> Harm:
    """Send a signal to tritonserver, or to the process of a model."""

    def harm(served: Served) -> float:
        os.kill(served.triton if target == "tritonserver" else served.stub(target), number)
        return time.monotonic()

    return harm


def take_port(served: Served) -> float:
    """Kill the server, take its port at once, and let go of it after some failed starts."""
    host, port = served.grpc_url.removeprefix("grpc://").split(":")
    os.kill(served.triton, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with socket.create_server((host, int(port))):
                served.wait_for_restart(3)
            return time.monotonic()
        except OSError:
            time.sleep(0.005)
    raise NotRun("the port was never free")


def corrupt_artifact(served: Served) -> float:
    """Break an artifact, kill the server, and mend the artifact after a failed start."""
    file = served.repository / "decoder/1/artifact/config.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    os.kill(served.triton, signal.SIGKILL)
    served.wait_for_restart(2)
    file.write_bytes(whole)
    return time.monotonic()


def fill(folder: str, *, again: bool) -> Harm:
    """Fill a small disk that only the server uses, and kill the server.

    If `again`, also fill what the dead server leaves, until a start has failed; then empty the disk.
    """

    def harm(served: Served) -> float:
        filler = Path(f"/proc/{served.process.pid}/root{folder}/filler")
        _fill(filler)
        os.kill(served.stub("decoder"), signal.SIGKILL)
        if again:
            deadline = time.monotonic() + 60
            while served.restarts().total() < 2 and time.monotonic() < deadline:
                _fill(filler)
                time.sleep(0.02)
            filler.unlink()
        return time.monotonic()

    return harm


def _fill(file: Path) -> None:
    with suppress(OSError), file.open("ab", buffering=0) as filler:
        while filler.write(bytes(1 << 16)):
            pass


def starve(served: Served) -> float:
    """Allow the decoder no more memory than it has now."""
    import resource

    pid = served.stub("decoder")
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
    time.sleep(2)
    if not served.restarts().total():  # it did not need more, so end it as the kernel would
        os.kill(pid, signal.SIGKILL)
    return time.monotonic()


@contextmanager
def clock_off_by(seconds: float) -> Iterator[None]:
    """Set this machine's clock ahead or back, and set it right at the end, even after an interrupt."""
    if not os.environ.get(SET_CLOCK):
        raise NotRun("sets this machine's clock: permit it with --set-clock")
    right = time.time() - time.monotonic()
    try:
        time.clock_settime(time.CLOCK_REALTIME, right + time.monotonic() + seconds)
    except PermissionError as error:
        raise NotRun("only root may set the clock") from error
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, right + time.monotonic())


def jump_ahead(served: Served) -> float:
    """Set the clock ahead, and set it right once the supervisor has noticed."""
    with clock_off_by(JUMP_SECONDS):
        over = time.monotonic()
        served.wait_for_restart()
    return over


def jump_back(_: Served) -> float:
    """Set the clock back, which does no harm, and then right again, which is a jump ahead."""
    with clock_off_by(-JUMP_SECONDS):
        time.sleep(3)
    return time.monotonic()


class Experiment(NamedTuple):
    """A fault, and the restarts that it must cause."""

    harm: Harm
    before: str = ""  # shell code that runs before the server
    restarts: int = 1  # at least; if 0, there may be none
    reason: str = ""  # of all restarts; then their number is exact


def beside(client: Callable[[Served], object]) -> Experiment:
    """An experiment with a difficult client, which must not cause a restart."""

    def harm(served: Served) -> float:
        client(served)
        return time.monotonic()

    return Experiment(harm, restarts=0)


def image() -> bytes:
    """One of the samples."""
    return min(SAMPLES.glob("*.jpg")).read_bytes()


STUBS = ("preprocess", "encoder", "decoder", "caption_stream", "match_encoder", "matcher")
EXPERIMENTS = {
    **{f"{model} killed": Experiment(signalled(model, signal.SIGKILL)) for model in STUBS},
    "tritonserver killed": Experiment(signalled("tritonserver", signal.SIGKILL)),
    **{f"{model} stopped": Experiment(signalled(model, signal.SIGSTOP)) for model in ("encoder", "decoder")},
    "tritonserver stopped": Experiment(signalled("tritonserver", signal.SIGSTOP)),
    "port taken at the restart": Experiment(take_port),
    "artifact corrupt at the restart": Experiment(corrupt_artifact),
    "memory at its limit": Experiment(starve),
    "shared memory full at the restart": Experiment(
        fill(SHARED_MEMORY, again=True), TMPFS.format(size="160m", folder=SHARED_MEMORY)
    ),
    "disk of log and temporary files full": Experiment(
        fill("/mnt", again=False), TMPFS.format(size="16m", folder="/mnt") + "export TMPDIR=/mnt; "
    ),
    "clock jumps ahead": Experiment(jump_ahead, reason="clock"),
    "clock jumps back": Experiment(jump_back, reason="clock"),
    "clients hang up": beside(lambda served: hang_up(served.grpc_url, image(), times=500)),
    "clients hang up on quick refusals": beside(
        lambda served: hang_up(served.grpc_url, image(), times=500, num_beams=99)
    ),
    "clients hang up on an overloaded server": beside(
        lambda served: hang_up_on_overload(served.grpc_url, image(), times=500)
    ),
    "give-ups": beside(lambda served: give_up(served.grpc_url, image(), seconds=20, rate=80)),
    "a huge request": beside(lambda served: ask_for_much(served.grpc_url, image(), rows=64, beams=10)),
    "slow images": beside(lambda served: send_slow_images(served.grpc_url)),
    "images that are sent as forms": beside(lambda served: post(served.http_url, bytes(40_000_000), FORM, times=5)),
    "a body in a million chunks": beside(lambda served: post_chunks(served.http_url, 1_000_000)),
    "JSON nested a million deep": beside(lambda served: post(served.http_url, b"[" * 1_000_000, {})),
    "compressed bodies that are no JSON": beside(
        lambda served: post(
            served.http_url, gzip.compress(b"{" + bytes(50_000_000)), {"Content-Encoding": "gzip"}, times=5
        )
    ),
    "idle connections": beside(
        lambda served: connect_idly(
            (served.http_url, served.grpc_url, served.metrics_url, served.health_url), IDLE_CONNECTIONS, seconds=5
        )
    ),
}


@dataclass
class Row:
    """The result of an experiment: a row of the table."""

    fault: str
    seconds: float | None = None  # from the end of the fault to the next caption
    restarts: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    longest: float = 0.0  # seconds from an image to its caption
    not_run: str = ""

    @property
    def is_well(self) -> bool:
        due = EXPERIMENTS[self.fault]
        exact = due.reason or not due.restarts
        as_due = not exact or Counter(self.restarts) == Counter({due.reason: due.restarts})
        return bool(self.not_run) or (self.seconds is not None and set(self.answers) == {"right"} and as_due)

    def line(self) -> str:
        if self.not_run:
            return f"| {self.fault} | not run: {self.not_run} | | | | | | |"
        restarts = ", ".join(f"{reason} {count}" for reason, count in self.restarts.items() if count)
        images = " | ".join(str(self.answers.get(answer, 0)) for answer in ("right", "wrong", "lost"))
        errors = sum(self.refusals.values())
        return f"| {self.fault} | {restarts} | {self.seconds:.1f} | {images} | {errors} | {self.longest:.1f} |"


HEADER = """| fault | restarts by reason | s to recover | images right | wrong | lost | errors | longest wait |
|---|---|---|---|---|---|---|---|"""


def experiment(name: str, repository: Path) -> Row:
    """Run the experiment of that name."""
    harm, before, restarts_due, _ = EXPERIMENTS[name]
    options = ["--log=/mnt/triton.log"] if "log" in name else []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(repository, Path(scratch, "models")))
        try:
            with serving(copy, Path(scratch), *options, before=before) as served, Load(served.grpc_url) as load:
                load.wait_for_captions(time.monotonic())
                time.sleep(STEADY_SECONDS)
                over = harm(served)
                served.wait_for_restart(restarts_due)
                recovered = load.wait_for_captions(max(over, time.monotonic() + 0.3))
                time.sleep(STEADY_SECONDS)
                restarts = dict(served.restarts())
            answers = dict(Counter(load.answers))
            refusals, longest = dict(load.refusals), round(load.longest, 2)
            return Row(name, round(recovered - over, 2), restarts, answers, load.wrong, refusals, longest)
        except NotRun as reason:
            return Row(name, not_run=str(reason))


@click.command(context_settings={"show_default": True})
@click.option("--repository", type=click.Path(path_type=Path, exists=True), default=ROOT / ".demo_cache")
@click.option("--only", multiple=True, help="Only experiments whose name contains this.")
@click.option("--times", type=click.IntRange(min=1), default=1, help="How often to run each; wrong captions are rare.")
@click.option("--output", type=click.Path(path_type=Path), help="File for all figures, as JSON.")
@click.option("--set-clock", is_flag=True, envvar=SET_CLOCK, help="Also run experiments that set this machine's clock.")
def main(repository: Path, only: tuple[str, ...], times: int, output: Path | None, set_clock: bool) -> None:
    """Print a table of faults and recoveries. `make demo` builds the default repository.

    The exit status is 1 if an image was lost, a caption was wrong, or the restarts were not those that were due.
    """
    if set_clock:
        os.environ[SET_CLOCK] = "1"
    click.echo(HEADER)
    rows = []
    for name in EXPERIMENTS:
        if not only or any(words in name for words in only):
            for _ in range(times):
                rows.append(experiment(name, repository))
                click.echo(rows[-1].line())
    if output:
        output.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    sys.exit(not all(row.is_well for row in rows))


if __name__ == "__main__":
    main()
