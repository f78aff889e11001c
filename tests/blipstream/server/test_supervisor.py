# SPDX-License-Identifier: Apache-2.0
"""The supervisor: what it takes for a fault, and that it restarts a real tritonserver with toy models."""

import json
import os
import re
import resource
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from threading import Event

import grpc
import pytest

from blipstream.errors import ServerError
from blipstream.server import clock
from blipstream.server import triton as module
from blipstream.server.command import check_serves
from blipstream.server.health import DOORS, STREAMS, Health
from blipstream.server.supervisor import (
    HANG_SECONDS,
    IDLE_SECONDS,
    LIVELOCK_SECONDS,
    LONG_IDLE_SECONDS,
    STEP_SECONDS,
    Canary,
    Diagnosis,
    Fault,
    Look,
    Supervisor,
    picture,
)
from blipstream.server.triton import TritonServer
from blipstream_client import BlipstreamError, Client
from tests.blipstream.server.test_command import CONFIG, child, serving, write_repository
from tests.client.proxy import proxy
from tests.client.tiny_triton import Answer, Inputs, Refusal, size_of_image, tiny_triton, word_by_word
from tests.client.tiny_triton import Event as StreamEvent
from tests.deploy.programs import wait_for

LOOK_SECONDS = 0.5
STREAMS_ALONE = r"no stream came out, though captions did, for \d+ seconds"
QUIET = {"preprocess": 7, "encoder": 7, "decoder": 7, "caption": 7}


STREAM_CONFIG = CONFIG.replace("NAME", STREAMS).replace(
    "output [",
    """model_transaction_policy { decoupled: true }
output [
  { name: "text" data_type: TYPE_STRING dims: [1] },
  { name: "finish_reason" data_type: TYPE_STRING dims: [1] },""",
)
STREAM_TOY = """
import os, time
import numpy as np
import triton_python_backend_utils as pb

def words(value):
    return np.array([[value]], dtype=object)

class TritonPythonModel:
    def execute(self, requests):
        while os.path.exists(HANG):
            time.sleep(0.1)
        for request in requests:
            request.get_response_sender().send(pb.InferenceResponse([
                pb.Tensor("text", words("a word")),
                pb.Tensor("finish_reason", words("stop")),
                pb.Tensor("caption", words("a word")),
                pb.Tensor("score", np.zeros((1, 1), dtype=np.float32)),
                pb.Tensor("num_tokens", np.full((1, 1), 2, dtype=np.int32)),
                pb.Tensor("token_scores", np.zeros((1, 1, 2), dtype=np.float32)),
            ]), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def judge(looks: Iterable[Look], seconds: float = LOOK_SECONDS) -> Fault | None:
    """The first fault that is found in looks so many seconds apart, while a caption is awaited."""
    diagnosis = Diagnosis()
    diagnosis.add(Look(QUIET), seconds)
    diagnosis.awaited = True
    return next(filter(None, (diagnosis.add(look, seconds) for look in looks)), None)


def looks(seconds: float, look: Callable[[int], Look]) -> list[Look]:
    return [look(number) for number in range(int(seconds / LOOK_SECONDS))]


def test_captions_are_all_it_takes() -> None:
    assert not judge(looks(60, lambda n: Look(QUIET | {"caption": 8 + n}, refusal="one of many")))


def test_streams_are_captions_too() -> None:
    assert not judge(looks(60, lambda n: Look(QUIET | {"caption_stream": 8 + n})))


def test_a_server_that_is_asked_for_nothing_is_well() -> None:
    diagnosis = Diagnosis()
    assert not any(diagnosis.add(Look(QUIET), LOOK_SECONDS) for _ in range(1000))


def test_an_idle_server_that_answers_no_canary_hangs() -> None:
    fault = judge(looks(HANG_SECONDS, lambda _: Look(QUIET)))
    assert fault == Fault("hung", "no caption came out for 3 seconds")


def test_a_server_that_says_nothing_hangs() -> None:
    assert judge(looks(HANG_SECONDS, lambda _: Look({}, frozenset())))


def test_slow_work_is_no_hang() -> None:
    """A batch of 64 in a large encoder on a small processor takes minutes, and nothing is finished meanwhile."""
    assert not judge(looks(300, lambda _: Look(QUIET, frozenset({"encoder"}))))


def test_a_starved_machine_is_no_hang() -> None:
    """Even if the processes that wait for a processor are seen to do so now and then only."""
    assert not judge(looks(60, lambda n: Look(QUIET, frozenset({"decoder"} if n % 3 == 0 else ()))))


def test_a_hung_stage_is_found_while_those_before_it_work_for_nothing() -> None:
    def look(number: int) -> Look:
        done = 8 + number
        return Look(QUIET | {"preprocess": done, "encoder": done}, frozenset({"preprocess", "encoder"}))

    assert judge(looks(HANG_SECONDS + LOOK_SECONDS, look)) == Fault("hung", "no caption came out for 3 seconds")


def test_each_stage_may_take_its_time_once() -> None:
    """As where a batch of 64 comes to a server that was idle: nothing comes out before each stage is done with it."""
    stages = [("preprocess", 5), ("encoder", 60), ("decoder", 20)]
    counts, all_looks = QUIET, []
    for stage, seconds in stages:
        all_looks += [Look(counts, frozenset({stage}))] * int(seconds / LOOK_SECONDS)
        counts = counts | {stage: 8}
    assert not judge(all_looks)
    assert judge([*all_looks, *looks(HANG_SECONDS + LOOK_SECONDS, lambda _: Look(counts))])


def test_a_door_that_is_behind_another_hangs_for_itself() -> None:
    def captions(number: int) -> dict[str, int]:
        return {model: count + number for model, count in QUIET.items()} | {"caption_stream": 3}

    def judge_streams(look: Callable[[int], Look]) -> Fault | None:
        diagnosis = Diagnosis.since(captions(0), STREAMS, awaited=True)
        found = (diagnosis.add(each, LOOK_SECONDS) for each in looks(2 * HANG_SECONDS, look))
        return next(filter(None, found), None)

    fault = judge_streams(lambda n: Look(captions(n), frozenset({"encoder", "decoder"})))
    assert fault == Fault("hung", "no stream came out, though captions did, for 4 seconds")
    assert not judge_streams(lambda n: Look(captions(n), frozenset({"caption_stream"})))
    assert not judge_streams(lambda n: Look(captions(n) | {"caption_stream": 3 + n}))


def test_a_door_that_nobody_uses_is_neglected() -> None:
    diagnosis = Diagnosis.since(QUIET)
    for number in range(20):
        diagnosis.add(Look(QUIET | {"caption": 8 + number}), LOOK_SECONDS)
    assert (diagnosis.silence, diagnosis.neglect) == (0, 0)
    for number in range(20):
        diagnosis.add(Look(QUIET | {"caption": 40 + number, "caption_stream": 0}), LOOK_SECONDS)
    assert diagnosis.silence == 0
    assert diagnosis.neglect == pytest.approx(20 * LOOK_SECONDS, abs=LOOK_SECONDS)


def test_work_without_end_is_a_hang_at_last() -> None:
    working = looks(LIVELOCK_SECONDS, lambda _: Look(QUIET, frozenset({"decoder"})))
    assert not judge(working[:-1])
    assert judge(working)


def test_a_decoder_that_makes_steps_is_alive() -> None:
    """As with a request of 64 images and ten beams, which those behind it wait for; until it stands still."""

    def steps(number: int, door: str = "decoder") -> Look:
        done = QUIET | {"preprocess": 8 + number, "encoder": 8 + number, "decoder": 8}
        return Look(done, frozenset({"decoder"}), progress={door: 100 + number // 4})

    alive = looks(300, steps)
    assert not judge(alive)
    hung = looks(2 * HANG_SECONDS, lambda _: alive[-1])
    fault = judge([*alive, *hung])
    assert fault is not None
    assert fault.reason == "hung"
    assert judge(looks(2 * LIVELOCK_SECONDS, steps))  # no work is an excuse for ever
    streams = Diagnosis.since(QUIET, STREAMS, awaited=True)
    faults = [streams.add(look, LOOK_SECONDS) for look in looks(2 * HANG_SECONDS, steps)]
    assert any(faults)  # which another's steps do not bring


def test_a_decoder_that_refuses_is_alive() -> None:
    """As one of which too many tokens are asked, steadily: the queues before it are long, and nothing comes out."""

    def refuses(number: int) -> Look:
        done = QUIET | {"preprocess": 8 + number, "encoder": 8 + number}
        return Look(done, progress={"decoder": 100 + number // 4}, pending={"encoder": 8, "decoder": 2})

    alive = looks(60, refuses)
    assert not judge(alive)
    assert judge([*alive, *looks(2 * HANG_SECONDS, lambda _: alive[-1])])


def flooded(number: int, pending: dict[str, int], working: frozenset[str] = frozenset()) -> Look:
    """Where requests come for the encoder alone, which is done with some every two seconds."""
    waits = {"preprocess": 0, "encoder": 0, "decoder": 0, "caption_stream": 0}
    return Look(QUIET | {"encoder": 8 + number // 4}, working, progress={"decoder": 9}, pending=waits | pending)


def test_a_stage_that_goes_on_is_alive_while_the_decoders_have_nothing_to_do() -> None:
    """And what has to be decoded waits for it; until it stands still, or a decoder does."""
    alive = looks(60, lambda n: flooded(n, {"encoder": 2000}))
    assert not judge(alive)
    assert judge([*alive, *looks(2 * HANG_SECONDS, lambda _: alive[-1])])
    assert judge(looks(2 * LIVELOCK_SECONDS, lambda n: flooded(n, {"encoder": 2000})))  # no work is an excuse for ever
    slow = [*alive, *looks(60, lambda _: flooded(119, {"encoder": 2000}, frozenset({"encoder"})))]
    assert not judge(slow)  # a large batch takes long
    assert judge([*slow, *looks(2 * HANG_SECONDS, lambda _: alive[-1])])
    for decoder in ("decoder", "caption_stream"):
        assert not judge(flooded(n, {"encoder": 2000, decoder: int(n % 4 == 0)}) for n in range(120))
        hung = [flooded(n, {"encoder": 2000, decoder: 1}) for n in range(20)]
        assert judge(hung) == Fault("hung", "no caption came out for 4 seconds")


def test_a_hung_encoder_is_found_while_the_decoders_have_nothing_to_do() -> None:
    def look(number: int) -> Look:
        working = frozenset({"preprocess"})
        return Look(QUIET | {"preprocess": 8 + number}, working, pending={"encoder": 3, "decoder": 0})

    assert judge(looks(2 * HANG_SECONDS, look)) == Fault("hung", "no caption came out for 4 seconds")


def test_a_door_is_not_excused_by_stages_that_serve_another() -> None:
    streams = Diagnosis.since(QUIET, STREAMS, awaited=True)
    assert any(streams.add(flooded(n, {}), LOOK_SECONDS) for n in range(20))


def test_a_server_that_refuses_every_caption_fails_though_it_works() -> None:
    fault = judge(looks(HANG_SECONDS, lambda _: Look(QUIET, frozenset({"decoder"}), refusal="no words")))
    assert fault == Fault("failing", "no caption came out for 3 seconds: no words")


def test_a_stopped_process_is_found_at_once_unless_it_goes_on() -> None:
    stopped, running = Look(QUIET, stopped=frozenset({"encoder"})), Look(QUIET)
    assert not judge([stopped, running, stopped])
    assert judge([stopped, stopped]) == Fault("stopped", "the process of encoder was stopped by a signal")


def test_time_in_which_the_supervisor_was_held_up_does_not_count() -> None:
    """As on a machine that was suspended: the server was, too."""
    assert not judge([Look(QUIET)] * 2, seconds=3600)


def send(canary: Canary, models: Container[str] = DOORS, *, everywhere: bool = False) -> None:
    """Send it, and wait until it is back."""
    canary.send(models, everywhere=everywhere)
    wait(canary._asked.values())


def test_the_canary_knocks_at_every_door_and_stays_where_it_is_refused() -> None:
    knocks, refuses, goes_on = Counter[str](), False, Event()
    goes_on.set()

    def answer(inputs: Inputs) -> Answer:
        knocks["caption"] += 1
        return size_of_image(inputs)

    def grow(inputs: Inputs) -> Iterable[StreamEvent]:
        knocks["stream"] += 1
        if refuses:
            raise Refusal(grpc.StatusCode.INTERNAL, "no words")
        goes_on.wait()
        return word_by_word(inputs)

    with tiny_triton() as tiny, closing(Canary(tiny.url("grpc"))) as canary:
        tiny.answer, tiny.grow = answer, grow
        send(canary, ["caption"])
        assert (knocks, canary.refusal, canary.behind) == ({"caption": 1}, "", "")
        send(canary)
        assert (knocks, canary.refusal, canary.behind) == ({"caption": 2, "stream": 1}, "", "")
        refuses = True
        for number in range(1, 4):
            send(canary)
            assert (knocks["caption"], knocks["stream"]) == (3, 1 + number)
            assert (canary.refusal, canary.behind) == ("no words", STREAMS)
        send(canary, everywhere=True)
        assert (knocks["caption"], canary.refusal, canary.behind) == (4, "no words", STREAMS)
        refuses = False
        send(canary)
        assert (knocks, canary.refusal, canary.behind) == ({"caption": 4, "stream": 6}, "", "")
        goes_on.clear()
        canary.send(DOORS)
        wait_for(lambda: canary.behind == STREAMS)
        canary.send(DOORS)
        goes_on.set()
        wait(canary._asked.values())
        assert (knocks, canary.refusal, canary.behind) == ({"caption": 5, "stream": 7}, "", "")


def test_an_empty_caption_is_none() -> None:
    """Neither as an answer nor among those that came out."""
    silence = {"text": "", "caption": "", "score": 0.0, "num_tokens": 1, "token_scores": [0.0], "finish_reason": "stop"}
    with tiny_triton() as tiny, closing(Canary(tiny.url("grpc"))) as canary:
        tiny.answer = lambda _: (" ", 0.0, 1)
        send(canary, ["caption"])
        assert canary.refusal == "its caption is empty"
        assert canary.with_words({"caption": 8, "decoder": 9}) == {"caption": 7, "decoder": 9}
        send(canary)
        assert canary.refusal == "its caption is empty"  # it asked at that door alone
        send(canary, everywhere=True)
        assert (canary.refusal, canary.behind) == ("its caption is empty", "caption")  # streams have words
        tiny.grow = lambda _: [silence]
        send(canary, everywhere=True)
        assert (canary.refusal, canary.behind) == ("its caption is empty", "")
        assert canary.with_words({"caption": 8, "caption_stream": 8}) == {"caption": 4, "caption_stream": 7}
        tiny.answer = size_of_image
        send(canary, ["caption"])
        assert canary.with_words({"caption": 9}) == {"caption": 5}


def test_the_canary_comes_over_a_new_connection_each_time() -> None:
    with (
        tiny_triton() as tiny,
        proxy(tiny.grpc_port) as between,
        closing(Canary(f"grpc://127.0.0.1:{between.port}")) as canary,
    ):

        def third_came() -> bool:
            send(canary, ["caption"])
            return between.connections >= 3  # gRPC may use one again that was closed just now

        wait_for(third_came)


def test_an_idle_server_is_asked_the_more_seldom_the_longer_a_caption_takes() -> None:
    takes = 0.0

    def answer(inputs: Inputs) -> Answer:
        time.sleep(takes)
        return size_of_image(inputs)

    with tiny_triton() as tiny, closing(Canary(tiny.url("grpc"))) as canary:
        tiny.answer = answer
        assert canary.pause == IDLE_SECONDS
        for seconds, least in ((0.1, 5), (1.3, LONG_IDLE_SECONDS)):
            takes = seconds
            send(canary, ["caption"])
            assert least <= canary.pause <= LONG_IDLE_SECONDS


def places(lines: list[str]) -> tuple[str, str]:
    """Where gRPC and the health page are, as a server greets."""
    words = lines[0].replace(",", "").split()
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
    """The caption of an image, once the server gives one."""
    deadline = time.monotonic() + 60
    with Client(url, timeout=5) as client:
        while True:
            try:
                return client.caption(picture()).text
            except BlipstreamError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def stream(url: str) -> None:
    """Ask for one, whatever comes of it."""
    with suppress(BlipstreamError), Client(url, retries=0) as client:
        list(client.stream(picture()))


def stub(server: int) -> int:
    return next(pid for pid in module._group(server) if module._stub_model(pid) == "caption")


def restarts(page: str) -> object:
    return health(page)[1]["restarts"]


def wait_for_restarts(page: str, number: int) -> None:
    wait_for(lambda: restarts(page) == number, seconds=3 * LONG_IDLE_SECONDS)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("busy", [True, False])
def test_it_notices_that_streams_alone_hang(tmp_path: Path, artifacts: Path, busy: bool) -> None:
    """With the real models, of which one is made to hang on demand."""
    repository = Path(shutil.copytree(artifacts, tmp_path / "models", symlinks=True))
    model, hang = repository / "caption_stream/1/model.py", tmp_path / "hang"
    loop = f"while __import__('os').path.exists({str(hang)!r}): __import__('time').sleep(0.1)"
    text = model.read_text()
    model.unlink()
    model.write_text(
        text.replace("        for request in requests:\n", f"        {loop}\n        for request in requests:\n")
    )
    with serving(tmp_path, f"--repository={repository}") as (_, lines):
        url, page = places(lines)
        time.sleep(3 * IDLE_SECONDS)
        assert restarts(page) == 0
        hang.touch()
        with ThreadPoolExecutor(1) as executor:
            captions = executor.submit(lambda: [caption(url) for _ in iter(hang.exists, False)]) if busy else None
            wait_for_restarts(page, 1)
            why = str(health(page)[1]["why"])
            wait_for(lambda: "a restart did not help" in str(health(page)[1]["why"]), seconds=60)
            figures = metrics(page)
            status, answer = health(page)
            hang.unlink()
            assert re.fullmatch(STREAMS_ALONE, why)
            assert 'blipstream_supervisor_failing{model="caption_stream"} 1' in figures
            assert (status, answer["restarts"]) == (200, 1)
            assert captions is None or captions.result()
        with Client(url) as client:
            assert "".join(piece.text for piece in client.stream(picture()))
        wait_for(lambda: health(page) == (200, {"ok": True, "why": "it captions", "restarts": 1}))


def test_without_restarts_a_door_that_never_answered_ends_nothing(tmp_path: Path) -> None:
    """Whoever starts the server again would do so for ever."""
    repository, hang = write_repository(tmp_path / "models"), tmp_path / "hang"
    (repository / STREAMS / "1").mkdir(parents=True)
    (repository / STREAMS / "config.pbtxt").write_text(STREAM_CONFIG)
    (repository / STREAMS / "1" / "model.py").write_text(STREAM_TOY.replace("HANG", repr(str(hang))))
    hang.touch()
    with serving(tmp_path, f"--repository={repository}", "--config=toy", "--no-restart") as (process, lines):
        url, page = places(lines)
        wait_for(lambda: bool(re.match(STREAMS_ALONE, str(health(page)[1]["why"]))), seconds=60)
        status, answer = health(page)
        assert (status, answer["ok"], answer["restarts"]) == (200, True, 0)
        assert str(answer["why"]).endswith("; none did since the start")
        assert 'blipstream_supervisor_failing{model="caption_stream"} 1' in metrics(page)
        hang.unlink()
        wait_for(lambda: health(page)[1]["why"] == "it captions")
        wait_for(lambda: 'blipstream_supervisor_failing{model="caption_stream"} 0' in metrics(page))
        hang.touch()
        with ThreadPoolExecutor(2) as executor:
            for _ in range(2):  # of which one waits, so that the supervisor need not
                executor.submit(stream, url)
            output, errors = process.communicate()
        assert output == ""
        assert re.fullmatch(f"error: {STREAMS_ALONE}\n", errors)
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
        assert health(page) == (200, {"ok": True, "why": "it captions", "restarts": 0})
        faults: list[tuple[str, Callable[[int], None]]] = [
            ("process_died", lambda server: os.kill(stub(server), signal.SIGKILL)),
            ("stopped", lambda server: os.kill(stub(server), signal.SIGSTOP)),
            ("failing", lambda _: mute.touch()),  # captions that are empty
        ]
        for number, (reason, harm) in enumerate(faults, 1):
            server = child(process)
            harm(server)
            wait_for_restarts(page, number)
            assert health(page)[0] == 503
            assert caption(url).endswith(" bytes")
            assert not module._group(server)
            assert f'blipstream_supervisor_restarts_total{{reason="{reason}"}} 1' in metrics(page)
        model.write_text("broken")
        os.kill(child(process), signal.SIGKILL)
        assert process.stderr is not None
        while "failed to load" not in process.stderr.readline():
            pass
        process.terminate()  # while it waits for the next attempt
        output, errors = process.communicate()
        assert output == "stopped\n"
        assert "Traceback" not in errors
        assert process.returncode == 0
    assert log.read_text().count("Started HTTPService") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "triton.log"]


def permit_no_more_files(pid: int) -> None:
    """Whatever it closes: only the numbers of standard input, output and error are left, which are taken."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))


def permit_files(pid: int) -> None:
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


def test_it_tells_that_no_new_connection_is_answered(tmp_path: Path) -> None:
    """Though captions come out over old ones."""
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, lines):
        url, page = places(lines)
        with Client(url, retries=0) as client:

            def is_told() -> bool:
                with suppress(BlipstreamError):  # of one that was just restarted
                    client.caption(picture())
                status, answer = health(page)
                return status == 503 and str(answer["why"]).startswith("no new connection was answered for")

            assert client.caption(picture())
            permit_no_more_files(child(process))
            wait_for(is_told, seconds=60)
        permit_files(child(process))
        assert caption(url).endswith(" bytes")
        wait_for(lambda: health(page)[0] == 200, seconds=60)


def test_it_survives_that_it_may_open_no_more_files(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, lines):
        url, page = places(lines)
        server = child(process)
        permit_no_more_files(process.pid)
        time.sleep(2 * IDLE_SECONDS)  # of looks that cannot be taken
        assert caption(url).endswith(" bytes")
        permit_files(process.pid)
        wait_for(lambda: health(page) == (200, {"ok": True, "why": "it captions", "restarts": 0}))
        assert child(process) == server
        permit_no_more_files(process.pid)
        process.terminate()
        output, errors = process.communicate()
        assert (output, process.returncode) == ("stopped\n", 0)
        assert "Traceback" not in errors
        assert not module._group(server)


def test_the_server_is_ended_when_the_clock_jumps_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once if it serves, and if it loads, then after that."""
    timer, lead = os.eventfd(0), 0.0
    monkeypatch.setattr(clock, "_timer", lambda: timer)
    monkeypatch.setattr(clock, "_lead", lambda: lead)

    class Loading(TritonServer):
        def wait_ready(self, timeout: float) -> None:
            if not supervisor.health.restarts.total():
                supervisor.stepped(100.0)
            super().wait_ready(timeout)

    server = Loading(write_repository(tmp_path / "models"), http_port=0, grpc_port=0, metrics_port=0)
    supervisor = Supervisor(server, check_serves)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(supervisor.run, lambda: None)
        try:
            wait_for(lambda: supervisor.health.restarts["clock"] == 1 and supervisor.health.captions, seconds=60)
            group = server.pid
            for seconds in (-100.0, STEP_SECONDS):
                supervisor.stepped(seconds)
            assert server.is_alive
            lead = 100.0
            os.eventfd_write(timer, 1)
            wait_for(lambda: not module._running(module._group(group)))
            words = "the clock jumped ahead by 100.0 seconds, after which Triton may mix up answers"
            wait_for(lambda: supervisor.health.why == words)
            assert caption(server.grpc_url).endswith(" bytes")
            assert not module._group(group)
            assert supervisor.health.restarts["clock"] == supervisor.health.restarts.total() == 2
            supervisor.restarts = False
            supervisor.stepped(100.0)
            with pytest.raises(ServerError, match=words):
                running.result()
        finally:
            supervisor.stopping.set()


def test_a_start_may_take_its_time(tmp_path: Path) -> None:
    """While models load, no heartbeat is due; once they have, the next one is."""
    repository, loads, go = write_repository(tmp_path / "models"), tmp_path / "loads", tmp_path / "go"
    model = repository / "caption" / "1" / "model.py"
    wait = f"import pathlib, time\npathlib.Path({str(loads)!r}).touch()\n"
    wait += f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.05)\n"
    model.write_text(wait + model.read_text())
    health = Health()

    def silence_while_loading() -> float:
        wait_for(loads.exists)
        silence = health.silence
        go.touch()
        return silence

    def fail(server: TritonServer) -> None:
        raise ServerError(f"{server.http_url} was asked {health.silence} seconds after its start")

    server = TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0)
    with ThreadPoolExecutor(1) as executor:
        loading = executor.submit(silence_while_loading)
        with pytest.raises(ServerError, match=r"was asked \d"):
            Supervisor(server, fail, health=health).run(lambda: None)
        assert loading.result() < 0


@pytest.mark.full  # it waits for the supervisor to be missed
def test_it_tells_that_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """A full pipe holds it up, and so it no longer knows whether captions come out."""
    model = write_repository(tmp_path / "models") / "caption"
    talk = "def answer(request):\n    print('x' * 100_000, flush=True)"
    (model / "1" / "model.py").write_text((model / "1" / "model.py").read_text().replace("def answer(request):", talk))
    with serving(tmp_path, f"--repository={model.parent}", "--config=toy", "--show-log") as (process, lines):
        (page,) = (word for line in lines for word in line.split() if word.endswith("/healthz"))
        wait_for(lambda: health(page)[0] == 503, seconds=60)
        assert "the supervisor has stood still for" in str(health(page)[1]["why"])
        assert health(page.replace("healthz", "livez"))[0] == 200
        assert process.stdout is not None
        while health(page)[0] == 503:
            process.stdout.readline()
        assert restarts(page) == 0
