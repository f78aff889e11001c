# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile, what it sees of this folder, and what it installs."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from blipstream.server import command as serve
from tests.conftest import ROOT
from tests.support.deployment import DOCKERFILE, copied, dockerfile, in_context, pins

TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
TENSORRT = "tensorrt-cu13-bindings"


def test_style() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", sorted(set(copied())))
def test_copied_files_exist_and_are_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    assert in_context(source)
    assert all(in_context(path) for path in TRACKED if path.startswith(f"{source}/"))


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        ".venv/bin/python",
        "deploy/admin-key",
        "build/demo/__pycache__/scenes.cpython-312.pyc",
        "loadtest/.bench_cache/model.safetensors",
        "model_repository/encoder/1/openvino/encoder.bin",
        "model_repository/encoder/1/model.plan",
        "tests/conftest.py",
    ],
)
def test_files_that_belong_to_no_image_are_ignored(path: str) -> None:
    assert not in_context(path)


def test_ports_and_command_are_those_of_the_server() -> None:
    defaults = {param.name: param.default for param in serve.main.params}
    ports = [str(defaults[name]) for name in ("http_port", "grpc_port", "metrics_port")]
    (exposed,) = (each.rest for each in dockerfile() if (each.stage, each.keyword) == ("server", "EXPOSE"))
    assert exposed.split() == ports
    (command,) = (each.rest for each in dockerfile() if each.keyword == "CMD")
    _, _, module, *arguments = re.findall(r'"([^"]*)"', command)
    assert module == "blipstream.server"
    _, rest, _ = serve.main.make_parser(click.Context(serve.main, **serve.main.context_settings)).parse_args(arguments)
    assert not rest


def test_does_not_run_as_root() -> None:
    last = {each.stage: each.rest for each in dockerfile() if each.keyword == "USER"}
    assert last == {"loadtest": "1000:1000", "server": "1000:1000"}


@pytest.mark.parametrize("name", ["requirements.lock", "loadtest.lock"])
def test_images_hold_the_versions_that_are_tested(name: str) -> None:
    tested, installed = pins(ROOT / "requirements.lock"), pins(ROOT / "deploy" / name)
    assert {package: installed[package] for package in tested.keys() & installed.keys()}.items() <= tested.items()


def test_the_gpu_image_lacks_only_the_cpu_encoder() -> None:
    tested, installed = pins(ROOT / "requirements.lock"), pins(ROOT / "deploy" / "requirements.lock")
    assert tested.keys() - installed.keys() == {"openvino", "openvino-telemetry"}


def test_tensorrt_is_that_of_the_base_image() -> None:
    (stated,) = re.findall(r"TensorRT (\d+\.\d+\.\d+\.\d+)", DOCKERFILE.read_text())
    assert pins(ROOT / "deploy" / "requirements.lock")[TENSORRT] == stated
