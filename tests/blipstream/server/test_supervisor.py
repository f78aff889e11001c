# SPDX-License-Identifier: Apache-2.0
"""The supervisor restarts a real tritonserver with toy models."""

import json
import os
import re
import resource
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from blipstream.errors import ServerError
from blipstream.server import clock_jumps, proc
from blipstream.server.canary import IDLE_SECONDS, MAX_PAUSE_SECONDS, random_image
from blipstream.server.health import Health
from blipstream.server.routes import STREAM
from blipstream.server.supervisor import MAX_CLOCK_JUMP, Supervisor
from blipstream.server.triton import TritonServer
from blipstream_client import BlipstreamError, Client
from tests.support.serving import STOPPED, child, serving
from tests.support.toy_models import STREAM_CONFIG, STREAM_TOY, write_repository
from tests.support.waiting import wait_until

STREAMS_ALONE = r"no stream came out, though captions did, for \d+ seconds"


def places(lines: list[str]) -> tuple[str, str]:
    """The addresses of gRPC and of the health page, as the server prints them."""
    words = " ".join(lines).split()
    url = next(word for word in words if word.startswith("grpc://"))
    page = next(word for word in words if word.endswith("/healthz"))
    return url, page


def health(address: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(address) as page:
            return page.status, json.load(page)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def metrics(page: str) -> str:
    with urllib.request.urlopen(page.replace("healthz", "metrics")) as text:
        return str(text.read().decode())


def caption(url: str) -> str:
    """The caption of an image, as soon as the server gives one."""
    deadline = time.monotonic() + 60
    with Client(url, timeout=5) as client:
        while True:
            try:
                return client.caption(random_image()).text
            except BlipstreamError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def stream(url: str) -> None:
    """Ask for a stream, whether or not it comes."""
    with suppress(BlipstreamError), Client(url, retries=0) as client:
        list(client.stream(random_image()))


def stub(server: int) -> int:
    return next(pid for pid in proc.processes_of_group(server) if proc.stub_model(pid) == "caption")


def restarts(page: str) -> object:
    return health(page)[1]["restarts"]


def wait_for_restarts(page: str, number: int) -> None:
    wait_until(lambda: restarts(page) == number, seconds=3 * MAX_PAUSE_SECONDS)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("busy", [True, False])
def test_it_notices_that_streams_alone_hang(tmp_path: Path, artifacts: Path, busy: bool) -> None:
    """With the real models, one of which hangs on demand."""
    repository = Path(shutil.copytree(artifacts, tmp_path / "models", symlinks=True))
    model, hang = repository / "caption_stream/1/model.py", tmp_path / "hang"
    loop = f"while __import__('os').path.exists({str(hang)!r}): __import__('time').sleep(0.1)"
    text, execute = model.read_text(), "    async def execute(self, requests):\n"
    assert execute in text
    model.unlink()
    model.write_text(text.replace(execute, f"{execute}        {loop}\n"))
    with serving(tmp_path, f"--repository={repository}") as (_, lines):
        url, page = places(lines)
        time.sleep(3 * IDLE_SECONDS)
        assert restarts(page) == 0
        hang.touch()
        with ThreadPoolExecutor(1) as executor:
            captions = executor.submit(lambda: [caption(url) for _ in iter(hang.exists, False)]) if busy else None
            wait_for_restarts(page, 1)
            why = str(health(page)[1]["why"])
            wait_until(lambda: "a restart did not help" in str(health(page)[1]["why"]), seconds=60)
            figures = metrics(page)
            status, answer = health(page)
            hang.unlink()
            assert re.fullmatch(STREAMS_ALONE, why)
            assert 'blipstream_supervisor_failing{model="caption_stream"} 1' in figures
            assert (status, answer["restarts"]) == (200, 1)
            assert captions is None or captions.result()
        with Client(url) as client:
            assert "".join(piece.text for piece in client.stream(random_image()))
        wait_until(lambda: health(page) == (200, {"ok": True, "why": "it answers", "restarts": 1}))


def test_without_restarts_a_route_that_never_answered_ends_nothing(tmp_path: Path) -> None:
    """Else whatever starts the server again would do so for ever."""
    repository, hang = write_repository(tmp_path / "models"), tmp_path / "hang"
    (repository / STREAM / "1").mkdir(parents=True)
    (repository / STREAM / "config.pbtxt").write_text(STREAM_CONFIG)
    (repository / STREAM / "1" / "model.py").write_text(STREAM_TOY.replace("HANG", repr(str(hang))))
    hang.touch()
    with serving(tmp_path, f"--repository={repository}", "--config=toy", "--no-restart") as (process, lines):
        url, page = places(lines)
        wait_until(lambda: bool(re.match(STREAMS_ALONE, str(health(page)[1]["why"]))), seconds=60)
        status, answer = health(page)
        assert (status, answer["ok"], answer["restarts"]) == (200, True, 0)
        assert str(answer["why"]).endswith("; none did since the start")
        assert 'blipstream_supervisor_failing{model="caption_stream"} 1' in metrics(page)
        hang.unlink()
        wait_until(lambda: health(page)[1]["why"] == "it answers")
        wait_until(lambda: 'blipstream_supervisor_failing{model="caption_stream"} 0' in metrics(page))
        hang.touch()
        with ThreadPoolExecutor(2) as executor:
            for _ in range(2):  # one of them waits in the queue, so the canary is sent without a long pause
                executor.submit(stream, url)
            output, errors = process.communicate()
        assert output == ""
        assert re.fullmatch(f"Error: {STREAMS_ALONE}\n", errors)
        assert process.returncode == 1


def test_it_restarts_whatever_happens_to_the_server(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    log, mute = tmp_path / "triton.log", tmp_path / "mute"
    model = repository / "caption" / "1" / "model.py"
    until_it_starts_again = f"import os\nif os.path.exists({str(mute)!r}):\n    os.remove({str(mute)!r})\n"
    nothing_while_mute = f"'' if os.path.exists({str(mute)!r}) else f"
    model.write_text(
        until_it_starts_again + model.read_text().replace("np.array([[f", f"np.array([[{nothing_while_mute}")
    )
    with serving(tmp_path, f"--repository={repository}", "--config=toy", f"--log={log}") as (process, lines):
        url, page = places(lines)
        assert health(page) == (200, {"ok": True, "why": "it answers", "restarts": 0})
        faults: list[tuple[str, Callable[[int], None]]] = [
            ("process_died", lambda server: os.kill(stub(server), signal.SIGKILL)),
            ("stopped", lambda server: os.kill(stub(server), signal.SIGSTOP)),
            ("failing", lambda _: mute.touch()),  # its captions are empty
        ]
        for number, (reason, harm) in enumerate(faults, 1):
            server = child(process)
            harm(server)
            wait_for_restarts(page, number)
            assert health(page)[0] == 503
            assert caption(url).endswith(" bytes")
            assert not proc.processes_of_group(server)
            assert f'blipstream_supervisor_restarts_total{{reason="{reason}"}} 1' in metrics(page)
        model.write_text("broken")
        os.kill(child(process), signal.SIGKILL)
        assert process.stderr is not None
        while "failed to load" not in process.stderr.readline():
            pass
        process.terminate()  # while it waits for the next attempt
        output, errors = process.communicate()
        assert output == STOPPED
        assert "Traceback" not in errors
        assert process.returncode == 0
    assert log.read_text().count("Started HTTPService") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "triton.log"]


def permit_no_more_files(pid: int) -> None:
    """Let a process open none, even if it closes some: only standard input, output and error fit the limit."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))


def permit_files(pid: int) -> None:
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


def test_it_tells_that_no_new_connection_is_answered(tmp_path: Path) -> None:
    """Even if captions come out over old ones."""
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, lines):
        url, page = places(lines)
        with Client(url, retries=0) as client:

            def is_told() -> bool:
                with suppress(BlipstreamError):  # the server was just restarted
                    client.caption(random_image())
                status, answer = health(page)
                return status == 503 and str(answer["why"]).startswith("no new connection was answered for")

            assert client.caption(random_image())
            permit_no_more_files(child(process))
            wait_until(is_told, seconds=60)
        permit_files(child(process))
        assert caption(url).endswith(" bytes")
        wait_until(lambda: health(page)[0] == 200, seconds=60)


def test_it_survives_that_it_may_open_no_more_files(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, lines):
        url, page = places(lines)
        server = child(process)
        permit_no_more_files(process.pid)
        time.sleep(2 * IDLE_SECONDS)  # in which no sample can be taken
        assert caption(url).endswith(" bytes")
        permit_files(process.pid)
        wait_until(lambda: health(page) == (200, {"ok": True, "why": "it answers", "restarts": 0}))
        assert child(process) == server
        permit_no_more_files(process.pid)
        process.terminate()
        output, errors = process.communicate()
        assert (output, process.returncode) == (STOPPED, 0)
        assert "Traceback" not in errors
        assert not proc.processes_of_group(server)


def test_the_server_is_ended_when_the_clock_jumps_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once if it serves. If it loads its models, once it has loaded them."""
    timer, lead = os.eventfd(0), 0.0
    monkeypatch.setattr(clock_jumps, "_timer", lambda: timer)
    monkeypatch.setattr(clock_jumps, "_lead", lambda: lead)

    class Loading(TritonServer):
        def wait_ready(self, timeout: float, waiting: Callable[[float], None] = lambda _: None) -> None:
            if not supervisor.health.restarts.total():
                supervisor.on_clock_jump(100.0)
            super().wait_ready(timeout, waiting)

    server = Loading(write_repository(tmp_path / "models"), http_port=0, grpc_port=0, metrics_port=0)
    supervisor = Supervisor(server)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(supervisor.run, lambda: None)
        try:
            wait_until(lambda: supervisor.health.restarts["clock"] == 1 and supervisor.health.is_captioning, seconds=60)
            group = server.pid
            for seconds in (-100.0, MAX_CLOCK_JUMP):
                supervisor.on_clock_jump(seconds)
            assert server.is_alive
            lead = 100.0
            os.eventfd_write(timer, 1)
            wait_until(lambda: not proc.running(group))
            words = "the clock jumped ahead by 100.0 seconds, after which Triton may mix up answers"
            wait_until(lambda: supervisor.health.why == words)
            assert caption(server.grpc_url).endswith(" bytes")
            wait_until(lambda: not proc.processes_of_group(group))  # init reaps what has ended
            assert supervisor.health.restarts["clock"] == supervisor.health.restarts.total() == 2
            supervisor.restarts = False
            supervisor.on_clock_jump(100.0)
            with pytest.raises(ServerError, match=words):
                running.result()
        finally:
            supervisor.stopping.set()


def test_a_start_may_take_its_time(tmp_path: Path) -> None:
    """While models load, no heartbeat is due. Then the next one is."""
    repository, loads, go = write_repository(tmp_path / "models"), tmp_path / "loads", tmp_path / "go"
    model = repository / "caption" / "1" / "model.py"
    wait = f"import pathlib, time\npathlib.Path({str(loads)!r}).touch()\n"
    wait += f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.05)\n"
    model.write_text(wait + model.read_text())
    health = Health()

    def silence_while_loading() -> float:
        wait_until(loads.exists)
        silence = health.overdue
        go.touch()
        return silence

    def fail(server: TritonServer) -> None:
        raise ServerError(f"{server.http_url} was asked {health.overdue} seconds after its start")

    server = TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0)
    with ThreadPoolExecutor(1) as executor:
        loading = executor.submit(silence_while_loading)
        with pytest.raises(ServerError, match=r"was asked \d"):
            Supervisor(server, fail, health=health).run(lambda: None)
        assert loading.result() < 0


@pytest.mark.full  # it waits until a heartbeat is overdue
def test_it_tells_that_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """A full pipe holds the supervisor up, so it no longer knows whether captions come out."""
    model = write_repository(tmp_path / "models") / "caption"
    talk = "def answer(request):\n    print('x' * 100_000, flush=True)"
    (model / "1" / "model.py").write_text((model / "1" / "model.py").read_text().replace("def answer(request):", talk))
    with serving(tmp_path, f"--repository={model.parent}", "--config=toy", "--show-log") as (process, lines):
        (page,) = (word for line in lines for word in line.split() if word.endswith("/healthz"))
        wait_until(lambda: health(page)[0] == 503, seconds=60)
        assert "the supervisor has stood still for" in str(health(page)[1]["why"])
        assert health(page.replace("healthz", "livez"))[0] == 200
        assert process.stdout is not None
        while health(page)[0] == 503:
            process.stdout.readline()
        assert restarts(page) == 0
