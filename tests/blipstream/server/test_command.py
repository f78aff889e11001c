# SPDX-License-Identifier: Apache-2.0
"""`blipstream serve`: with toy models, and once with the real ones."""

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from blipstream import signals
from blipstream.command_line import command
from blipstream.errors import ServerError
from blipstream.server import command as serve
from tests.support.serving import STOPPED, child, serving
from tests.support.terminal import sentence
from tests.support.toy_models import write_repository


def test_loopback_asks_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http", "https", "all", "grpc"):
        for variable in (f"{name}_proxy", f"{name}_PROXY".upper()):
            monkeypatch.setenv(variable, "http://127.0.0.1:1")
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy") as (process, _):
        environment = Path(f"/proc/{child(process)}/environ").read_bytes().split(b"\0")
        assert (
            b"no_proxy=127.0.0.1,localhost,::1,127.0.0.1" in environment
        )  # so that models reach a collector of traces


def test_server_that_dies_without_restarts(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models")
    with serving(tmp_path, f"--repository={repository}", "--config=toy", "--no-restart") as (process, _):
        os.kill(child(process), signal.SIGKILL)
        output, errors = process.communicate()
        assert output == ""
        assert sentence(errors).startswith("Error: tritonserver was ended by signal 9 (log: ")
        assert process.returncode == 1


def test_an_adapter_needs_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "handle", lambda _: None)
    options = [f"--repository={write_repository(tmp_path)}", "--adapter=fr=french"]
    result = CliRunner().invoke(serve.main, options)
    assert result.exit_code == 1
    told = "--adapter is built with a CHECKPOINT: give that, too, or add it before by `blipstream adapter add`"
    assert sentence(result.stderr) == f"Error: {told}"


def test_unknown_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "handle", lambda _: None)
    options = [f"--repository={write_repository(tmp_path)}", "--config=typo"]
    result = CliRunner().invoke(serve.main, options)
    assert result.exit_code == 1
    assert (
        sentence(result.stderr) == f"Error: {tmp_path} has no configuration 'typo': choose one of fast, toy, tensorrt"
    )


def test_the_log_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the variables are those of the options."""
    found: list[serve.ServeOptions] = []
    monkeypatch.setattr(serve, "serve", found.append)
    names = {"LOG": "/log", "RESTART": "0", "CHECKPOINT": "a/b", "HTTP_PORT": "1", "VERBOSE": "2", "SHOW_LOG": "1"}
    names |= {"HOST": "10.0.0.1", "TIMEOUT": "7", "REPOSITORY": str(tmp_path), "TRACE_EVERY": "9"}
    result = CliRunner(env={f"BLIPSTREAM_{name}": value for name, value in names.items()}).invoke(serve.main)
    assert result.output == ""
    (settings,) = found
    assert (settings.log_path, settings.restart, settings.checkpoint) == (Path("/log"), False, "a/b")
    assert (settings.http_port, settings.verbose, settings.show_log, settings.timeout) == (1, 2, True, 7.0)
    assert (settings.host, settings.repository, settings.trace_every) == ("10.0.0.1", str(tmp_path), 9)


def test_options_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers get them. An empty variable does not count."""
    monkeypatch.setattr(signals, "handle", lambda _: None)
    environment = {"BLIPSTREAM_REPOSITORY": str(write_repository(tmp_path)), "BLIPSTREAM_CONFIG": "typo"}
    environment |= dict.fromkeys(("BLIPSTREAM_LOG_REQUESTS", "BLIPSTREAM_TRACES", "BLIPSTREAM_TLS_CERTIFICATE"), "")
    result = CliRunner(env=environment).invoke(serve.main)
    assert (
        sentence(result.stderr) == f"Error: {tmp_path} has no configuration 'typo': choose one of fast, toy, tensorrt"
    )


@pytest.mark.parametrize("config", ["tensorrt", "default"])
def test_default_configuration(tmp_path: Path, config: str) -> None:
    assert serve.config_name(write_repository(tmp_path), config) is None


@pytest.mark.parametrize("config", ["cpu", "tensorrt"])
def test_what_is_no_repository(tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "handle", lambda _: None)
    (tmp_path / "interrupted/encoder/1/.openvino-x").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, found in {
        "gone": "does not exist",
        "file": "is no folder",
        "interrupted": "has no models",
    }.items():
        result = CliRunner().invoke(serve.main, [f"--repository={tmp_path / name}", f"--config={config}"])
        assert result.exit_code == 1
        assert sentence(result.stderr) == (
            f"Error: {tmp_path / name} {found}: give a model repository, "
            f"or build it first by `{command('build', repository=tmp_path / name)}`"
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
    assert serve.ADMIN_KEY not in os.environ  # which the models' processes inherit
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
        assert process.communicate() == (STOPPED, "")
        assert process.returncode == 0
