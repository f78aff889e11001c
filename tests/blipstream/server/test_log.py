# SPDX-License-Identifier: Apache-2.0
"""Triton's log: shown, and kept short."""

import os
import signal
import time
from pathlib import Path

import pytest

from blipstream.errors import ServerError
from blipstream.server import log
from blipstream.server.triton import TritonServer
from tests.support.double_model import ANY, DOUBLE, infer, running_stubs

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_an_error_about_a_client_that_hung_up_is_no_reason() -> None:
    hung_up = 'E1130 18:00:00.000000 1 infer_handler.cc:1] "[INTERNAL] HandleCancellation called even when ..."\n'
    assert log.first_error(hung_up) == ""
    assert log.first_error(f"{hung_up}error: creating server: no models\n") == "creating server: no models"


def watch(server: TritonServer) -> None:
    while True:
        server.check()
        time.sleep(0.1)


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
        monkeypatch.setattr(log, "MAX_BYTES", server.log_path.stat().st_size - 1)
        server.check()
        assert server.log_path.stat().st_size == 0
        assert "Started HTTPService" in server.log_path.with_name(f"{server.log_path.name}.1").read_text()
        infer(server, [2])
        assert server.log_path.read_bytes() == b"hello\n"  # with no hole before it
        os.kill(running_stubs(server)[0], signal.SIGKILL)
        with pytest.raises(ServerError, match="the process of model 'double' died"):
            watch(server)
    assert capsys.readouterr().out.count("hello") == 2
