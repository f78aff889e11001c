# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream.server`: with toy models, and once with the real ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from blipstream.errors import ServerError
from blipstream.server import command as serve
from blipstream.server.triton import ROOT, TritonServer

CONFIG = """
name: "NAME"
backend: "python"
max_batch_size: 4
input [
  { name: "image" data_type: TYPE_STRING dims: [1] },
  { name: "max_tokens" data_type: TYPE_INT32 dims: [1] optional: true }
]
output [
  { name: "caption" data_type: TYPE_STRING dims: [-1] },
  { name: "score" data_type: TYPE_FP32 dims: [-1] },
  { name: "num_tokens" data_type: TYPE_INT32 dims: [-1] },
  { name: "token_scores" data_type: TYPE_FP32 dims: [-1, -1] }
]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
TOY = """
import numpy as np
import triton_python_backend_utils as pb

def answer(request):
    image = pb.get_input_tensor_by_name(request, "image").as_numpy()[0, 0]
    if FAIL:
        return pb.InferenceResponse(error=pb.TritonError("no words"))
    return pb.InferenceResponse([
        pb.Tensor("caption", np.array([[f"WORDS"]], dtype=object)),
        pb.Tensor("score", np.zeros((1, 1), dtype=np.float32)),
        pb.Tensor("num_tokens", np.full((1, 1), 2, dtype=np.int32)),
        pb.Tensor("token_scores", np.zeros((1, 1, 2), dtype=np.float32)),
    ])

class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]
"""
ANY_PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")


def write_repository(folder: Path, fail: bool = False, words: str = "{len(image)} bytes") -> Path:
    for name in ("caption", "encoder"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(TOY.replace("FAIL", str(fail)).replace("WORDS", words))
        (folder / name / "config.pbtxt").write_text(CONFIG.replace("NAME", name))
    (folder / "encoder" / "configs").mkdir()
    for config in ("toy", "fast"):
        (folder / "encoder" / "configs" / f"{config}.pbtxt").write_text(CONFIG.replace("NAME", "encoder"))
    return folder


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A serving process with its temporary files in `folder`, and the lines that it greets with."""
    path = os.pathsep.join([str(ROOT / "client"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "blipstream.server", *ANY_PORTS, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process, greeting(process)
        finally:
            process.terminate()
            process.communicate()


def greeting(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "Ctrl-C stops it":
        line = process.stdout.readline()
        assert line, process.communicate()
        lines.append(line.strip())
    return lines


def child(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, lines):
        assert lines[0].startswith("serving on http://127.0.0.1:")
        assert any("blipstream caption " in line and "--url grpc://" in line for line in lines)
        server = child(process)
        process.send_signal(number)
        process.send_signal(number)  # impatience does no harm
        assert process.communicate() == ("stopped\n", "")
        assert process.returncode == 0
        assert not running(server)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_nohup_is_heeded() -> None:
    code = """
import signal
from blipstream.server import command as serve
signal.signal(signal.SIGHUP, signal.SIG_IGN)
serve.stop_on_signals()
print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.getsignal(signal.SIGTERM) == serve._interrupt)
"""
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout == b"True True\n"
    )


def test_loopback_asks_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http", "https", "all", "grpc"):
        for variable in (f"{name}_proxy", f"{name}_PROXY".upper()):
            monkeypatch.setenv(variable, "http://127.0.0.1:1")
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, _):
        environment = Path(f"/proc/{child(process)}/environ").read_bytes().split(b"\0")
        assert b"no_proxy=127.0.0.1,localhost,::1,127.0.0.1" in environment  # for collectors of traces


def test_server_that_dies_without_restarts(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy", "--no-restart") as (process, _):
        os.kill(child(process), signal.SIGKILL)
        output, errors = process.communicate()
        assert output == ""
        assert errors.startswith("error: tritonserver was ended by signal 9 (log: ")
        assert errors.count("\n") == 1
        assert process.returncode == 1


def test_server_that_is_ready_and_fails(tmp_path: Path) -> None:
    server = TritonServer(repository=write_repository(tmp_path, fail=True), http_port=0, grpc_port=0, metrics_port=0)
    with server, pytest.raises(ServerError, match=r"its first caption failed: .*no words"):
        serve.check_serves(server)


def test_server_that_has_no_words(tmp_path: Path) -> None:
    server = TritonServer(repository=write_repository(tmp_path, words=""), http_port=0, grpc_port=0, metrics_port=0)
    with server, pytest.raises(ServerError, match=r"but its first caption is empty: build it with `make build`$"):
        serve.check_serves(server)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_line(tmp_path: Path) -> None:
    image = tmp_path / "it's.jpg"
    image.write_bytes(bytes(range(256)) * 257)
    server = TritonServer(repository=write_repository(tmp_path / "models"), http_port=0, grpc_port=0, metrics_port=0)
    with server:
        line = serve.curl(server.http_url, image, image.stat().st_size)
        assert "-H 'Content-Type: application/octet-stream'" in line  # a form's is parsed on the stack
        answer = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    assert json.loads(answer)["outputs"][0]["data"] == ["65792 bytes"]


def test_unknown_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "stop_on_signals", lambda: None)
    options = [f"--repository={write_repository(tmp_path)}", "--config=typo"]
    result = CliRunner().invoke(serve.main, options)
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path} has no configuration 'typo': choose one of fast, toy, tensorrt\n"


def test_options_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers get them: an empty variable is none."""
    monkeypatch.setattr(serve, "stop_on_signals", lambda: None)
    environment = {"BLIPSTREAM_REPOSITORY": str(write_repository(tmp_path)), "BLIPSTREAM_CONFIG": "typo"}
    environment |= dict.fromkeys(("BLIPSTREAM_LOG_REQUESTS", "BLIPSTREAM_TRACES", "BLIPSTREAM_TLS_CERTIFICATE"), "")
    result = CliRunner(env=environment).invoke(serve.main)
    assert result.stderr == f"error: {tmp_path} has no configuration 'typo': choose one of fast, toy, tensorrt\n"


@pytest.mark.parametrize("config", ["tensorrt", "default"])
def test_default_configuration(tmp_path: Path, config: str) -> None:
    assert serve.config_name(write_repository(tmp_path), config) is None


@pytest.mark.parametrize("config", ["cpu", "tensorrt"])
def test_what_is_no_repository(tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "stop_on_signals", lambda: None)
    (tmp_path / "interrupted/encoder/1/.openvino-x").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, found in {
        "gone": "does not exist",
        "file": "is no folder",
        "interrupted": "has no models",
    }.items():
        result = CliRunner().invoke(serve.main, [f"--repository={tmp_path / name}", f"--config={config}"])
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: {tmp_path / name} {found}: give a model repository, "
            f"or build it first by `make build REPOSITORY={tmp_path / name}`\n"
        )


def test_the_admin_key_is_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret-Key_1\n")
    assert serve.read_admin_key(file) == "s3cret-Key_1"


def test_no_key_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.touch()
    keys = {serve.read_admin_key(each) for each in (file, file, None, None)}
    assert len(keys) == 4
    assert all(len(key) == 64 for key in keys)


def test_the_admin_key_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.ADMIN_KEY, "s3cret")
    assert serve.read_admin_key(None) == "s3cret"
    assert serve.ADMIN_KEY not in os.environ  # which the models' processes get
    monkeypatch.setenv(serve.ADMIN_KEY, "two words")
    with pytest.raises(ServerError, match="the key in BLIPSTREAM_ADMIN_KEY must be letters"):
        serve.read_admin_key(None)


@pytest.mark.parametrize("key", ["two words", "a:b", "a=b", "a,b", "schlüssel"])
def test_keys_that_triton_would_misread(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    with pytest.raises(
        ServerError, match=r"must be letters, digits, - and _ alone: make one by `openssl rand -hex 32`"
    ):
        serve.read_admin_key(file)


@pytest.mark.full
def test_shows_the_log(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy", "--show-log") as (process, lines):
        process.terminate()
        output, errors = process.communicate()
        assert " ".join([*lines, output]).count("Started HTTPService") == 1
        assert output.endswith("stopped\n")
        assert errors == ""


@pytest.mark.full  # the demo serves them, too
def test_real_models(artifacts: Path, tmp_path: Path) -> None:
    with serving(tmp_path, f"--repository={artifacts}", "--config=cpu") as (process, _):
        process.terminate()
        assert process.communicate() == ("stopped\n", "")
        assert process.returncode == 0
