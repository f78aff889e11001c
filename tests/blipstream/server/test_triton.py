# SPDX-License-Identifier: Apache-2.0
"""The embedded server, with toy models on the real tritonserver."""

import fcntl
import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from blipstream.errors import ServerError
from blipstream.server import triton as module
from blipstream.server.leftovers import sweep
from blipstream.server.triton import TritonServer
from tests.deploy.programs import wait_for

CONFIG = """
name: "NAME"
backend: "python"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
DOUBLE = """
import triton_python_backend_utils as pb
import blipstream.errors
import PIL.Image  # the environment's packages are there

class TritonPythonModel:
    def execute(self, requests):
        x = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", 2 * value)]) for value in x]
"""
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
ANY: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


def write_model(repository: Path, name: str, code: str) -> None:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(CONFIG.replace("NAME", name))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "double", DOUBLE)
    return tmp_path / "models"


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test leaves no process, no shared memory and no temporary folder (a log may stay)."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield
    assert not leftovers()
    assert not [path for path in (tmp_path / "tmp").iterdir() if ".log" not in path.name]


def leftovers() -> list[Any]:
    mine = f"blipstream-{os.getpid()}-"
    commands = [(p, p.read_bytes()) for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    return [*Path("/dev/shm").glob(f"{mine}*"), *(c for c in commands if mine.encode() in c[1])]  # noqa: S108


def infer(server: TritonServer, values: list[float]) -> list[float]:
    tensor = {"name": "x", "shape": [1, len(values)], "datatype": "FP32", "data": values}
    url = f"{server.http_url}/v2/models/double/infer"
    with urllib.request.urlopen(url, json.dumps({"inputs": [tensor]}).encode()) as response:
        data: list[float] = json.load(response)["outputs"][0]["data"]
        return data


def running_stubs(server: TritonServer) -> list[int]:
    return [pid for pid in module._running(module._group(server.pid)) if module._stub_model(pid)]


def watch(server: TritonServer) -> None:
    while True:
        server.check()
        time.sleep(module.POLL_SECONDS)


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 20
    while module._running(module._group(group)):
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


def test_environment_goes_before_our_defaults(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with TritonServer(repository=repository, **ANY) as server:
        environments = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in module._group(server.pid)]
    assert len(environments) == 2  # of Triton and of the model's stub
    assert all(b"GOMP_SPINCOUNT=7" in each and b"MALLOC_ARENA_MAX=2" in each for each in environments)


def test_stacks_are_large_and_files_many(repository: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with TritonServer(repository=repository, **ANY) as server:
        group = module._group(server.pid)
        assert len(group) == 2
        assert {resource.prlimit(pid, resource.RLIMIT_STACK)[0] for pid in group} == {module.STACK_BYTES}
        assert {resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in group} == {(most, most)}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("-Ss unlimited", module.STACK_BYTES),  # of which glibc would make 2 MiB
        ("-Ss 8192", module.STACK_BYTES),
        ("-Ss 1048576", 1 << 30),
        ("-s 65536", 64 << 20),
        ("-Ss 8192; ulimit -v 16777216", 8 << 20),
    ],
)
def test_size_of_stacks(limits: str, expected: int) -> None:
    code = "from blipstream import server; print(server._stack_bytes())"
    command = f"ulimit {limits}; exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    done = subprocess.run(["bash", "-c", command], cwd=module.ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected


def test_any_path_will_do(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a b" / """q"x'y;ü$(touch executed)"""
    odd.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    log = odd / "log"
    with TritonServer(repository=repository.rename(odd / "models"), log_path=log, **ANY) as server:
        assert infer(server, [1, 2, 3]) == [2, 4, 6]
        assert "successfully loaded 'double'" in log.read_text()
    assert {path.name for path in odd.iterdir()} == {"models", "log"}
    assert not (module.ROOT / "executed").exists()


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
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"ended by signal 9 \(log: .*\.log\)"):
            watch(server)
    assert server.log_path is not None
    assert server.log_path.exists()


def test_it_is_struck_as_a_whole_whenever_it_runs(repository: Path) -> None:
    server = TritonServer(repository=repository, **ANY)
    server.strike()
    with server:
        group = server.pid
        assert running_stubs(server)
        server.strike()
        wait_until_gone(group)
        os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT)  # threads may outlast the first, a zombie by then
        with pytest.raises(ServerError, match="ended by signal 9"):
            server.check()
        server.strike()  # nobody else has its number yet
    server.strike()


def test_it_is_started_again_where_it_aborts_once(repository: Path) -> None:
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
    """A model ends it again and again."""
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
    """What it cannot clear itself, the next one does."""
    code = f"""
    import tempfile, time
    from pathlib import Path
    from blipstream.server.triton import TritonServer
    tempfile.tempdir = {str(tmp_path)!r}
    models = Path({str(repository)!r})
    with TritonServer(repository=models, http_port=0, grpc_port=0, metrics_port=0) as server:
        print(server.pid, server._name, flush=True)
        time.sleep(300)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=module.ROOT
    )
    with parent:
        assert parent.stdout is not None
        pid, name = parent.stdout.readline().split()
        if also_the_group:
            os.killpg(int(pid), signal.SIGSTOP)  # lest it ends by itself once its parent is gone
        parent.kill()
    places = (module.SHARED_MEMORY, tmp_path)
    if also_the_group:
        for place in places:
            sweep(place)
        assert len(list(tmp_path.glob(f"{name}*"))) == 3  # the lock, the folder and the log of one that lives
        os.killpg(int(pid), signal.SIGKILL)
    wait_until_gone(int(pid))
    for place in places:
        wait_for(partial(is_free, place / f"{name}.lock"))  # threads may outlast the first
    if also_the_group:
        assert list(module.SHARED_MEMORY.glob(f"{name}-shm-*"))
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


def test_python_without_a_stub(tmp_path: Path) -> None:
    for version in ("3.9", "3.10", "3.8"):
        (tmp_path / "stubs" / version).mkdir(parents=True)
    with pytest.raises(ServerError, match=r"has no stub for Python 3\.\d+: use 3\.8, 3\.9 or 3\.10"):
        module._find_stub(tmp_path / "stubs")


def test_python_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: {"LIBDIR": "/nowhere"}.get(name, "3.99"))
    with pytest.raises(ServerError, match=r"needs libpython3\.99\.so\.1\.0.*apt-get install libpython3\.99"):
        module._libpython_folder()


def test_too_new_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.4.6")
    with pytest.raises(ServerError, match=r"needs numpy below 2 and found 2\.4\.6"):
        module._check_numpy()


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ServerError, match="there is no tritonserver"):
        module.find()


def status(server: TritonServer, path: str, key: str = "") -> int:
    """What the server answers to a POST."""
    request = urllib.request.Request(server.http_url + path, b"", {module.ADMIN_HEADER: key} if key else {})
    try:
        return int(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        return error.code


def grpc_status(server: TritonServer, key: str = "") -> str:
    """What the server answers to a question for its models over gRPC."""
    headers = {f"triton-grpc-protocol-{module.ADMIN_HEADER}": key} if key else {}
    try:
        with InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
            client.get_model_repository_index(headers=headers)
    except InferenceServerException as error:
        return str(error.message())
    return "OK"


def test_administrative_apis_need_the_key(repository: Path) -> None:
    with TritonServer(repository, admin_key="s3cret", **ANY) as server:
        assert "s3cret" not in repr(server)
        assert status(server, "/v2/repository/index") == 403
        assert status(server, "/v2/repository/index", "guess") == 403
        assert status(server, "/v2/repository/index", "s3cret") == 200
        assert "This protocol is restricted" in grpc_status(server)
        assert grpc_status(server, "s3cret") == "OK"
        assert "s3cret" not in (server.log_path or Path()).read_text()


def test_administrative_apis_are_closed_unless_one_gives_a_key(repository: Path) -> None:
    with TritonServer(repository, **ANY) as server:
        assert status(server, "/v2/repository/index") == 403
        assert "This protocol is restricted" in grpc_status(server)


def test_shows_each_line_of_the_log_once(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TritonServer(repository, show_log=True, **ANY) as server:
        server.check()
        server.check()
    output = capsys.readouterr().out
    assert output.count("Started HTTPService") == 1
    assert output.count("Signal (15) received") == 1


def test_a_long_log_begins_anew(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "double/1/model.py").write_text(
        DOUBLE.replace(
            "def execute(self, requests):", 'def execute(self, requests):\n        print("hello", flush=True)'
        )
    )
    with TritonServer(repository, show_log=True, **ANY) as server:
        assert server.log_path is not None
        infer(server, [1])
        server.check()
        monkeypatch.setattr(module, "LOG_BYTES", server.log_path.stat().st_size - 1)
        server.check()
        assert server.log_path.stat().st_size == 0
        assert "Started HTTPService" in server.log_path.with_name(f"{server.log_path.name}.1").read_text()
        infer(server, [2])
        assert server.log_path.read_bytes() == b"hello\n"  # with no hole before it
        os.kill(running_stubs(server)[0], signal.SIGKILL)
        with pytest.raises(ServerError, match="the process of model 'double' died"):
            watch(server)
    assert capsys.readouterr().out.count("hello") == 2


METRICS = b"""\
# TYPE nv_inference_count counter
nv_inference_count{gpu_uuid="GPU-1",model="decoder",version="1"} 3
nv_inference_count{gpu_uuid="GPU-2",model="decoder",version="1"} 4
nv_inference_count{model="preprocess",version="1"} 9
nv_inference_count{model="caption_stream",version="1"} 5
nv_inference_exec_count{model="preprocess",version="1"} 2
blipstream_requests_total{model="caption_stream",result="error"} 5
blipstream_requests_total{model="caption_stream",result="ok"} 0
blipstream_requests_total{model="caption_stream",result="invalid"} 8
blipstream_requests_total{model="decoder",result="invalid"} 20
blipstream_requests_total{model="decoder",result="cancelled"} 3
blipstream_requests_total{model="decoder",result="overloaded"} 500
blipstream_steps_total{model="decoder"} 100
blipstream_steps_total{model="caption_stream"} 0
nv_inference_pending_request_count{model="decoder",version="1"} 1
nv_inference_pending_request_count{model="preprocess",version="1"} 0
blipstream_rows{model="decoder"} 10
blipstream_waiting{model="decoder"} 2
"""


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Triton writes them where there are GPUs; what a model counts by itself goes before what Triton counts.

    Who refuses what its senders did wrong comes further, unless it is a door, behind which all may stand still.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS)

    with HTTPServer(("127.0.0.1", 0), Page) as page:
        thread = Thread(target=page.serve_forever)
        thread.start()
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        server = TritonServer(tmp_path, metrics_port=page.server_port)
        counts, progress, pending = server.counts(), server.progress(), server.pending()
        assert counts == {"decoder": 7, "preprocess": 9, "caption_stream": 0}
        assert progress == {"decoder": 123, "caption_stream": 0}
        assert pending == {"decoder": 13, "preprocess": 0}
        page.shutdown()
        thread.join()
