# SPDX-License-Identifier: Apache-2.0
"""`blipstream serve CHECKPOINT` up to where the server starts. tests/test_wheels.py goes on from there."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blipstream.server import checkpoint
from blipstream_build.configs import CONFIGS
from tests.conftest import CHECKPOINT
from tests.support.terminal import sentence

SERVE = [sys.executable, "-m", "blipstream.server", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]


def test_a_repository_that_is_up_to_date(artifacts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.build(str(CHECKPOINT), "cpu", artifacts) == artifacts
    assert capfd.readouterr() == ("", f"{artifacts} is up to date with emoji-demo\n")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run([*SERVE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence(done.stderr) == f"Error: {tmp_path} is no checkpoint: {tmp_path} has no config.json"


def test_what_is_no_adapter(tmp_path: Path) -> None:
    command = [*SERVE, f"--repository={tmp_path}", "--adapter=fr=nowhere", str(CHECKPOINT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence(done.stderr).startswith("Error: there is no folder nowhere: ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--http-port=99999"], "HTTP port 99999 is out of range: choose 0 to 65535 with --http-port"),
        (["--metrics-port=65535"], "health port 65536 is out of range: choose 0 to 65535 with --health-port"),
        (
            ["--grpc-port=TAKEN"],
            "gRPC port TAKEN is taken: choose another with --grpc-port, or 0 for any free port",
        ),
        (
            ["--http-port=FREE", "--health-port=FREE"],
            "port FREE is given twice, for HTTP and health: choose another with --health-port, or 0 for any free port",
        ),
    ],
)
def test_wrong_ports(options: list[str], told: str, tmp_path: Path) -> None:
    """They are told before the build, which would refuse this checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with socket.create_server(("127.0.0.1", 0)) as other:
            free = other.getsockname()[1]
        numbers = {"TAKEN": str(taken.getsockname()[1]), "FREE": str(free)}
        for name, number in numbers.items():
            options = [option.replace(name, number) for option in options]
            told = told.replace(name, number)
        done = subprocess.run([*SERVE, *options, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, sentence(done.stderr)) == (1, "", f"Error: {told}")


def test_unknown_configuration(tmp_path: Path) -> None:
    """Of a checkpoint that is to be built."""
    done = subprocess.run([*SERVE, "--config=foo", str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence(done.stderr) == (
        "Error: no checkpoint is built for configuration 'foo': choose one of cpu, cuda, tensorrt"
    )
    assert list(CONFIGS) == list(checkpoint.CONFIGS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_build(number: signal.Signals, tmp_path: Path) -> None:
    """In order, although it reached only the process that waits for it."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(
        [*SERVE, str(CHECKPOINT)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        shown = b""
        while b"exporting encoder" not in shown:
            shown += os.read(process.stderr.fileno(), 1 << 16)
            assert process.poll() is None, shown
        process.send_signal(number)
        output, errors = process.communicate()
    assert (process.returncode, output) == (130, b"")
    assert errors.endswith(b"stopped\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_before_the_build_handles_any(tmp_path: Path) -> None:
    """While Python itself starts, it would print a traceback for SIGINT."""
    (tmp_path / "sitecustomize.py").write_text("import sys, time\nif '-P' in sys.orig_argv: time.sleep(300)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [*SERVE, str(CHECKPOINT)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"", b"stopped\n")
    assert process.returncode == 130
