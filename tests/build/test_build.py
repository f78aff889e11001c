# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to artifacts by the command, as a user calls it."""

import json
import math
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from blipstream_build import verify
from blipstream_build.command import main
from blipstream_build.verify import Captions, Report, Stage
from tests.conftest import CHECKPOINT, ROOT
from tests.support.slow_import import importing
from tests.support.terminal import sentence

ODD = """it's "mine" — モデル $HOME"""  # people give such names


def run(checkpoint: Path | str, repository: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["--checkpoint", str(checkpoint), "--repository", str(repository), *options])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(CHECKPOINT, tmp_path / f"checkpoint of {ODD}")


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_nothing_is_told_to_anybody(tmp_path: Path) -> None:
    """OpenVINO's tools would send statistics. Their first sign is a folder in the user's home."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(home)}
    command = [sys.executable, "-m", "blipstream_build", "--repository", str(tmp_path / "repository"), str(CHECKPOINT)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (home / "intel").exists()


def test_whole_life(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / ODD
    first = run(checkpoint, repository)
    assert first.exit_code == 0, first.output
    for part in (
        "exporting encoder",
        "relative error",
        "captions   8 of 8 equal",
        "installed preprocess, encoder, dec",
    ):
        assert part in first.output
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}

    second = run(checkpoint, repository)
    said, following = second.output.splitlines()
    assert (second.exit_code, said) == (0, f"{repository} is up to date with {checkpoint.name}")
    assert shlex.split(following)[-3:] == ["serve", "--repository", str(repository)]
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path.parts[-2] in ("artifact", "openvino"))

    # one artifact is gone: it alone is made again, and no staging folder stays behind
    shutil.rmtree(repository / "encoder/1/openvino")
    third = run(checkpoint, repository)
    assert third.exit_code == 0, third.output
    assert f"installed encoder in {repository}" in third.output
    assert {path.name for path in (repository / "encoder/1").iterdir()} == {"model.py", "openvino"}

    # for another dtype or other settings, all of it is made again
    fourth = run(checkpoint, repository, "--dtype", "f32")
    assert "installed preprocess, encoder, decoder" in fourth.output
    assert json.loads((repository / "decoder/1/artifact/config.json").read_text())["dtype"] == "f32"
    edit(checkpoint / "generation_config.json", max_length=21)
    assert "installed preprocess, encoder, decoder" in run(checkpoint, repository, "--dtype", "f32").output


def test_what_is_off_is_not_installed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    monkeypatch.setitem(verify.TOLERANCE, "decoder", {"f32": 1e-9, "bf16": 1e-9})
    result = run(checkpoint, repository)
    assert result.exit_code == 1
    assert sentence(result.stderr) == "Error: what was built is too far from transformers: nothing was installed"
    assert not [path for path in repository.rglob("*") if path.is_file()]  # neither artifacts nor their configs


def test_what_has_no_words_is_not_installed(checkpoint: Path, tmp_path: Path) -> None:
    """Although transformers has no words either."""
    weights = load_file(checkpoint / "model.safetensors")
    weights["text_decoder.cls.predictions.bias"][3] = 1000  # the bias of [SEP], which ends a caption
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    result = run(checkpoint, tmp_path / "repository")
    assert result.exit_code == 1
    assert "8 of 8 equal transformers'" in result.output
    assert sentence(result.stderr) == (
        "Error: it has no words for 8 of 8 samples, such as a-book.jpg: nothing was installed"
    )
    assert not [path for path in (tmp_path / "repository").rglob("*") if path.is_file()]


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit of file sizes stands for it: OpenVINO says `basic_ios::clear: iostream error` for both."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
    try:
        result = run(CHECKPOINT, tmp_path / "repository")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert sentence(result.stderr) == (
        f"Error: {tmp_path}/repository/encoder/1 cannot hold artifacts: File too large; "
        "make room there, or give another --repository"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.full)])
def test_a_build_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C leaves nothing. What SIGKILL leaves, the next build removes."""
    repository = tmp_path / "repository"
    command = [sys.executable, "-m", "blipstream_build"]
    command += ["--checkpoint", str(CHECKPOINT), "--repository", str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        shown = b""
        while b"exporting encoder" not in shown:
            shown += os.read(process.stdout.fileno(), 1 << 16)
            assert process.poll() is None, process.communicate()
        process.send_signal(number)
        _, error = process.communicate()
    if number == signal.SIGINT:
        assert (process.returncode, error) == (130, b"stopped\n")
        assert not repository.exists()
    else:
        assert [path.name[:10] for path in (repository / "preprocess/1").iterdir()] == [".artifact-"]
        assert run(CHECKPOINT, repository).exit_code == 0
        assert {path.name for path in (repository / "preprocess/1").iterdir()} == {"model.py", "artifact"}


@pytest.mark.parametrize("module", ["click", "torch"])
def test_ctrl_c_while_it_imports(module: str, tmp_path: Path) -> None:
    """A library that is being imported may swallow an exception, or print a traceback."""
    with importing("blipstream_build", module, "--repository", str(tmp_path / "repository")) as process:
        process.send_signal(signal.SIGINT)
        shown, error = process.communicate()
    assert (process.returncode, error) == (130, "stopped\n")
    assert shown in ("", "loading PyTorch ... ")
    assert not list(tmp_path.iterdir())


def stage(ours: float) -> Stage:
    return Stage("decoder", "f32", torch.tensor([ours]), torch.tensor([1.0]))


SOUND = Report([stage(1.0)], [Captions("a.jpg", "a key", "a key"), Captions("b.jpg", "a cat", "a hat")], "a")


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (SOUND, ""),
        (replace(SOUND, stages=[stage(1.1)]), "what was built is too far from transformers"),
        (replace(SOUND, stages=[stage(math.nan)]), "what was built is too far from transformers"),
        (replace(SOUND, captions=[Captions("a.jpg", "", "a key")]), "no words for 1 of 1 samples, such as a.jpg"),
        (replace(SOUND, captions=[Captions("a.jpg", "a key", " ")]), "no words for 1 of 1 samples, such as a.jpg"),
        (replace(SOUND, captions=[Captions("a.jpg", ") ) )", ") ) )")]), "no words for 1 of 1 samples, such as a.jpg"),
        (replace(SOUND, captions=[Captions("a.jpg", "“…”", "a key")]), "no words for 1 of 1 samples, such as a.jpg"),
        (replace(SOUND, captions=[Captions("a.jpg", "鍵。", "鍵。")]), ""),
        (replace(SOUND, captions=[Captions("a.jpg", "- 7 -", "- 7 -")]), ""),
        (replace(SOUND, opening=""), "it says nothing of a plain picture, for which health checks ask"),
        (replace(SOUND, opening='"'), ""),
    ],
)
def test_faults(report: Report, fault: str) -> None:
    assert fault in report.fault
    assert bool(fault) == bool(report.fault)


def test_one_caption_for_all_is_told() -> None:
    """It is no fault: a checkpoint may know one kind of picture only."""
    assert not SOUND.is_monotonous
    assert not replace(SOUND, captions=SOUND.captions[:1]).is_monotonous
    monotonous = replace(SOUND, captions=[Captions(image, "a key", "a key") for image in ("a.jpg", "b.jpg")])
    assert monotonous.is_monotonous
    assert not monotonous.fault


def test_make_hands_on_names_as_they_are(tmp_path: Path) -> None:
    """A shell that split them would build something else, or somewhere else."""
    blipstream = tmp_path / "blipstream"
    blipstream.write_text("""#!/bin/sh\nprintf '%s\\n' "$@"\n""")
    blipstream.chmod(0o755)
    names = {"CHECKPOINT": "a 'b' \"c\" é;d", "REPOSITORY": "/e f/モデル", "PROCESSOR": "g & h"}
    command = ["make", "--silent", "--old-file=.venv/ready", "build", f"BIN={tmp_path}"]
    command += [f"{variable}={name}" for variable, name in names.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    arguments = done.stdout.splitlines()
    for variable, name in names.items():
        assert arguments[arguments.index(f"--{variable.lower()}") + 1] == name


def test_an_empty_name(tmp_path: Path) -> None:
    """As of a variable that has no value."""
    for name in ([""], ["--checkpoint", ""]):
        result = CliRunner().invoke(main, [*name, "--repository", str(tmp_path / "repository")])
        assert (result.exit_code, result.stdout) == (1, "")
        assert sentence(result.stderr) == (
            "Error: CHECKPOINT is empty: give a hub name or a folder, or leave it out for the demo checkpoint"
        )


def test_what_is_up_to_date_needs_no_torch(artifacts: Path) -> None:
    """So that it is told in a moment."""
    code = """
import sys
from blipstream_build.command import main
main(sys.argv[1:], standalone_mode=False)
print(sorted(sys.modules.keys() & {"torch", "transformers", "openvino", "huggingface_hub"}))
"""
    command = [sys.executable, "-c", code, str(CHECKPOINT), "--repository", str(artifacts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{artifacts} is up to date with emoji-demo"
    assert done.stdout.splitlines()[-1] == "[]"


def test_missing_folder(tmp_path: Path) -> None:
    result = run("nobody/nothing", tmp_path / "repository")
    assert result.exit_code == 1
    assert sentence(result.stderr).startswith(
        "Error: there is no folder nobody/nothing, and it could not be downloaded"
    )


def test_a_proxy_that_refuses(tmp_path: Path) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(407)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        settings = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.server_port}", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "blipstream_build", "nobody/nothing", "--repository", str(tmp_path / "models")]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        proxy.shutdown()
    assert done.returncode == 1
    assert sentence(done.stderr).startswith(
        "Error: there is no folder nobody/nothing, and it could not be downloaded from the Hugging Face hub "
        "(407 Proxy Authentication Required): check the name, the network"
    )


def test_neither_folder_nor_hub_name(tmp_path: Path) -> None:
    result = run("no/such/folder", tmp_path / "repository")
    assert sentence(result.stderr) == (
        "Error: there is no folder no/such/folder, and it is no hub name either: "
        "one is OWNER/NAME, such as Salesforce/blip-image-captioning-base"
    )


@pytest.mark.parametrize("name", ["nobody/x/", "https://huggingface.co/nobody/x", "https://huggingface.co/nobody/x/"])
def test_a_hub_name_written_otherwise(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path / "repository")
    assert sentence(result.stderr).endswith(", and it is no hub name either: did you mean nobody/x?")


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-folder", "../no/folder", "~/no-folder", "~nobody/x"])
def test_a_path_is_not_looked_up_on_the_hub(tmp_path: Path, path: str) -> None:
    result = run(path, tmp_path / "repository")
    told = f"Error: there is no folder {path}: check the path, or give a hub name, such as "
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence(result.stderr).startswith(told)
    lender = sentence(run(CHECKPOINT, tmp_path / "repository", "--processor", path).stderr)
    assert lender.startswith(told.replace("Error: ", "Error: for --processor, "))


def test_a_path_whose_home_the_shell_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `make serve CHECKPOINT=~/my-blip`."""
    monkeypatch.setenv("HOME", str(CHECKPOINT.parent))
    result = run(f"~/{CHECKPOINT.name}", tmp_path / "repository")
    assert sentence(result.stderr) == f"Error: there is no folder ~/{CHECKPOINT.name}: did you mean {CHECKPOINT}?"


def test_other_revisions_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay, and the build says how to remove them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = tmp_path / "blipstream/repositories/emoji-demo-0123456789ab-cpu-auto"
    old.mkdir(parents=True)
    first = CliRunner().invoke(main, [])
    told = "other revisions of emoji-demo are there, too; if you no longer serve one:\n"
    assert f"{told}  rm -r {old}  # 0.00 GB" in first.stdout
    assert old.exists()
    assert told not in CliRunner().invoke(main, []).stdout


def test_folder_without_checkpoint(tmp_path: Path) -> None:
    result = run(tmp_path, tmp_path / "repository")
    assert sentence(result.stderr) == f"Error: {tmp_path} is no checkpoint: {tmp_path} has no config.json"
    assert result.stdout == ""


def test_repository_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, Path("/")):
        result = run(CHECKPOINT, folder)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert sentence(result.stderr) == (
            f"Error: {folder} holds other files and no model repository: give a --repository that is new, empty, or "
            "from an earlier build"
        )
    result = run(CHECKPOINT, tmp_path / "file")
    assert sentence(result.stderr) == f"Error: {tmp_path}/file is a file: give a --repository that is a folder"
    assert sorted(tmp_path.rglob("*")) == before


def test_repository_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(CHECKPOINT, tmp_path / "file" / "repository")
    assert result.exit_code == 1
    assert "cannot hold artifacts: Not a directory" in sentence(result.stderr)
    assert "Traceback" not in result.output
