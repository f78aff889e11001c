# SPDX-License-Identifier: Apache-2.0
"""TritonServer, with toy models on the real tritonserver."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from blipstream.errors import ServerError
from blipstream.server import proc
from blipstream.server.installation import ROOT
from blipstream.server.leftovers import sweep
from blipstream.server.triton import TritonServer
from blipstream.server.workspace import SHARED_MEMORY
from tests.support.double_model import ANY, DOUBLE, infer, leftovers, running_stubs, write_model
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

BROKEN = """
class ArtifactError(Exception):
    pass

class TritonPythonModel:
    def initialize(self, args):
        raise ArtifactError("no artifacts in 'here':\\nrun `make artifacts`")
"""
COUNTED = """
with open(STARTS, "a") as starts:
    starts.write("x")
"""
ABORTING = f"""{COUNTED}
import os, signal
os.kill(os.getppid(), signal.SIGABRT)
"""
ERROR = "E1130 18:00:00.000000 1 infer_handler.cc:1]"


def watch(server: TritonServer) -> None:
    while True:
        server.check()
        time.sleep(0.1)


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 20
    while proc.running(group):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_serves_and_stops(repository: Path) -> None:
    with TritonServer(repository=repository, **ANY) as server:
        assert infer(server, [1, 2, 3]) == [2, 4, 6]
        with urllib.request.urlopen(server.metrics_url) as response:
            assert 'nv_inference_request_success{model="double",version="1"}' in response.read().decode()
        assert leftovers()
        log = server.log_path
        assert log is not None
        assert "successfully loaded 'double'" in log.read_text()
    assert not log.exists()


def test_each_model_is_loaded_once(repository: Path) -> None:
    starts = repository.parent / "starts"
    write_model(repository, "counted", COUNTED.replace("STARTS", repr(str(starts))) + DOUBLE)
    with TritonServer(repository=repository, **ANY):
        assert starts.read_text() == "x"


def test_any_path_will_do(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a b" / """q"x'y;ü$(touch executed)"""
    odd.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    log = odd / "log"
    with TritonServer(repository=repository.rename(odd / "models"), log_path=log, **ANY) as server:
        assert infer(server, [1, 2, 3]) == [2, 4, 6]
        assert "successfully loaded 'double'" in log.read_text()
    assert {path.name for path in odd.iterdir()} == {"models", "log"}
    assert not (ROOT / "executed").exists()


@pytest.mark.full
def test_two_servers_do_not_disturb_each_other(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "first.log"
    with TritonServer(repository=repository, **ANY) as second:
        with TritonServer(repository=repository, log_path=log, **ANY) as first:
            assert first.http_port != second.http_port
            assert infer(first, [1]) == [2]
        assert infer(second, [2]) == [4]
    assert "successfully unloaded 'double'" in log.read_text()


def test_killed_server_is_noticed(repository: Path) -> None:
    with TritonServer(repository=repository, **ANY) as server:
        assert running_stubs(server)
        assert server.log_path is not None
        with server.log_path.open("a") as log:
            log.write(f'{ERROR} "an error that has nothing to do with it"\n')
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"^tritonserver was ended by signal 9 \(log: .*\.log\)$"):
            watch(server)
    assert server.log_path.exists()


def test_sigkill_ends_the_whole_group_whenever_it_runs(repository: Path) -> None:
    server = TritonServer(repository=repository, **ANY)
    server.sigkill()
    with server:
        group = server.pid
        assert running_stubs(server)
        server.sigkill()
        wait_until_gone(group)
        os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT)  # the first thread may be a zombie while others still run
        with pytest.raises(ServerError, match="ended by signal 9"):
            server.check()
        server.sigkill()  # no other process has its number yet
    server.sigkill()


def test_it_is_started_again_if_it_aborts_once(repository: Path) -> None:
    server = TritonServer(repository=repository, **ANY)
    try:
        server.start()
        os.kill(first := server.pid, signal.SIGABRT)
        server.wait_ready(server.ready_timeout)
        assert server.pid != first
        assert infer(server, [1]) == [2]
    finally:
        server.stop()


def test_it_is_not_started_for_ever(repository: Path) -> None:
    """If a model aborts it again and again."""
    starts = repository.parent / "starts"
    write_model(repository, "broken", ABORTING.replace("STARTS", repr(str(starts))))
    with pytest.raises(ServerError, match="ended by signal 6"):
        TritonServer(repository=repository, **ANY).__enter__()
    assert starts.read_text() == "xx"


def test_killed_stub_is_noticed(repository: Path) -> None:
    with TritonServer(repository=repository, **ANY) as server:
        os.kill(running_stubs(server)[0], signal.SIGKILL)
        with pytest.raises(ServerError, match="the process of model 'double' died"):
            watch(server)


def is_free(lock: Path) -> bool:
    with lock.open() as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@pytest.mark.parametrize("also_the_group", [False, True])
def test_server_ends_with_its_parent(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also_the_group: bool
) -> None:
    """What it cannot remove itself, the next server removes."""
    code = f"""
    import tempfile, time
    from pathlib import Path
    from blipstream.server.triton import TritonServer
    tempfile.tempdir = {str(tmp_path)!r}
    models = Path({str(repository)!r})
    with TritonServer(repository=models, http_port=0, grpc_port=0, metrics_port=0) as server:
        print(server.pid, server._workspace.name, flush=True)
        time.sleep(300)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with parent:
        assert parent.stdout is not None
        pid, name = parent.stdout.readline().split()
        if also_the_group:
            os.killpg(int(pid), signal.SIGSTOP)  # so that it does not end by itself without its parent
        parent.kill()
    places = (SHARED_MEMORY, tmp_path)
    if also_the_group:
        for place in places:
            sweep(place)
        assert len(list(tmp_path.glob(f"{name}*"))) == 3  # the lock, the folder and the log of a server that lives
        os.killpg(int(pid), signal.SIGKILL)
    wait_until_gone(int(pid))
    for place in places:
        wait_until(partial(is_free, place / f"{name}.lock"))  # other threads may outlive the first
    if also_the_group:
        assert list(SHARED_MEMORY.glob(f"{name}-shm-*"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TritonServer(repository=repository, **ANY):
        assert not [left for place in places for left in place.glob(f"{name}*")]


@pytest.mark.parametrize(("protocol", "option"), [("HTTP", "http_port"), ("gRPC", "grpc_port")])
def test_taken_port(repository: Path, protocol: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = TritonServer(repository=repository, **ANY | {option: port})
        with pytest.raises(ServerError, match=f"^{protocol} port {port} is taken: .*--{protocol.lower()}-port"):
            server.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "192.0.2.1"}, "192.0.2.1 is no address of this machine"),
        ({"http_port": 70000}, "HTTP port 70000 is out of range"),
        ({"log_path": Path("/nowhere/log")}, r"the log /nowhere/log cannot be written \(No such file"),
        ({"repository": Path("/nowhere")}, "no model repository at /nowhere"),
    ],
)
def test_wrong_options(repository: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        TritonServer(**{"repository": repository, **ANY, **options}).__enter__()


def test_failing_model(repository: Path) -> None:
    write_model(repository, "broken", BROKEN)
    sentence = r"^model 'broken' failed to load: no artifacts in 'here': run `make artifacts` \(log: (.*)\)$"
    server = TritonServer(repository=repository, **ANY)
    with pytest.raises(ServerError, match=sentence), server:
        pass
    assert server.log_path is not None
    assert "no artifacts" in server.log_path.read_text()


def test_model_that_takes_its_process_along(repository: Path) -> None:
    """Triton would wait for it forever."""
    write_model(repository, "broken", "import os, time; time.sleep(0.5); os._exit(3)")
    with pytest.raises(ServerError, match="the process of model 'broken' died"):
        TritonServer(repository=repository, **ANY).__enter__()


def test_malformed_config(repository: Path) -> None:
    config = repository / "double" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size", "max_batch_sighs"))
    with pytest.raises(ServerError, match="model directory 'double': failed to read text proto"):
        TritonServer(repository=repository, **ANY).__enter__()


def test_missing_backend(repository: Path) -> None:
    config = repository / "double" / "config.pbtxt"
    config.write_text(config.read_text().replace('"python"', '"tensorrt"'))
    with pytest.raises(ServerError, match=r"model 'double' failed to load: .*tensorrt"):
        TritonServer(repository=repository, **ANY).__enter__()


def test_not_ready_in_time(repository: Path) -> None:
    with pytest.raises(ServerError, match="not ready after 0 seconds"):
        TritonServer(repository=repository, ready_timeout=0, **ANY).__enter__()
