# SPDX-License-Identifier: Apache-2.0
"""Stop signals."""

import signal
from pathlib import Path

import pytest

from tests.support.serving import STOPPED, child, running, serving
from tests.support.slow_import import importing
from tests.support.toy_models import write_repository


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, lines):
        assert any(line.startswith("serving on http://127.0.0.1:") for line in lines)
        assert any("blipstream caption " in line and "--url grpc://" in line for line in lines)
        server = child(process)
        process.send_signal(number)
        process.send_signal(number)  # a second one does no harm
        assert process.communicate() == (STOPPED, "")
        assert process.returncode == 0
        assert not running(server)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("module", ["click", "blipstream_client"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it_cleanly_while_it_imports(module: str, number: signal.Signals) -> None:
    with importing("blipstream.server", module, "--repository=/nowhere") as process:
        process.send_signal(number)
        assert process.communicate() == ("stopped\n", "")
        assert process.returncode == 0
