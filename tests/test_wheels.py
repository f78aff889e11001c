# SPDX-License-Identifier: Apache-2.0
"""`make wheels`, and what somebody gets who installs them and has no checkout."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT

SERVER, CLIENT = "blipstream-0.2.0-py3-none-any.whl", "blipstream_client-0.2.0-py3-none-any.whl"
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def build_wheels(folder: Path, umask: int = 0o022) -> Path:
    """As `make wheels` does, into another folder."""
    for source in (ROOT, ROOT / "client"):
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, umask=umask)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheels(tmp_path_factory.mktemp("wheels"))


def test_the_same_files_make_the_same_wheels(wheels: Path, tmp_path: Path) -> None:
    again = build_wheels(tmp_path, umask=0o077)
    assert {path.name for path in wheels.iterdir()} == {SERVER, CLIENT}
    for name in (SERVER, CLIENT):
        assert (again / name).read_bytes() == (wheels / name).read_bytes()


def test_what_travels(wheels: Path) -> None:
    """All that git tracks of some folders, under the names by which it is imported; no artifact, no test."""
    folders = {
        "blipstream/": "blipstream/",
        "build/blipstream_build/": "blipstream_build/",
        "build/blipstream_calibrate/": "blipstream_calibrate/",
        "build/blipstream_demo/": "blipstream_demo/",
        "build/blipstream_finetune/": "blipstream_finetune/",
        "build/demo/adapters/": "blipstream/share/build/demo/adapters/",
        "build/demo/checkpoint/": "blipstream/share/build/demo/checkpoint/",
        "build/demo/retrieval-checkpoint/": "blipstream/share/build/demo/retrieval-checkpoint/",
        "build/demo/samples/": "blipstream/share/build/demo/samples/",
        "deploy/grafana/dashboards/": "blipstream/share/deploy/grafana/dashboards/",
        "deploy/nginx/check-keys.sh": "blipstream/share/deploy/nginx/check-keys.sh",
        "deploy/nginx/nginx.conf": "blipstream/share/deploy/nginx/nginx.conf",
        "deploy/prometheus/rules/": "blipstream/share/deploy/prometheus/rules/",
        "deploy/prometheus/scrape.yml": "blipstream/share/deploy/prometheus/scrape.yml",
        "deploy/prometheus/user/": "blipstream/share/deploy/prometheus/user/",
        "loadtest/blipstream_bench/": "blipstream_bench/",
        "loadtest/blipstream_loadtest/": "blipstream_loadtest/",
        "loadtest/blipstream_tune/": "blipstream_tune/",
        "model_repository/": "blipstream/share/model_repository/",
    }
    expected = {
        target + path.removeprefix(source)
        for source, target in folders.items()
        for path in TRACKED
        if path.startswith(source) and (ROOT / path).exists()
    }
    assert {name for name in ZipFile(wheels / SERVER).namelist() if ".dist-info/" not in name} == expected
    names = ZipFile(wheels / CLIENT).namelist()
    assert {name.split("/")[0] for name in names} == {
        "blipstream_client",
        CLIENT.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    assert "blipstream_client/py.typed" in names


@pytest.fixture
def installed(wheels: Path, tmp_path: Path) -> Path:
    """The programs of an environment that has the wheels, and of this one all packages but ours."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    bin_folder = tmp_path / "venv" / "bin"
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile"]
    install = [sys.executable, "-m", "pip", "--python", str(bin_folder / "python"), "install", *options]
    subprocess.run([*install, str(wheels / SERVER), str(wheels / CLIENT)], check=True)
    # a path in it is no folder of more .pth files, so those that lead to the checkout do not count
    site_packages = next((tmp_path / "venv" / "lib").glob("*/site-packages"))
    (site_packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_folder


def test_rules_and_alerts_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [installed / "blipstream", "monitoring", "watch"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("rules/blipstream.yml", "user/alerts.html"):
        assert (tmp_path / "watch" / name).read_text() == (ROOT / "deploy/prometheus" / name).read_text()


@pytest.mark.full
def test_one_command_and_no_clone(installed: Path, tmp_path: Path, samples: dict[str, str]) -> None:
    """`blipstream serve` builds, serves and says how to ask; what it says works as it stands."""
    home = tmp_path / "it's home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"XDG_CACHE_HOME": str(home / "cache"), "HOME": str(home)}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    imports = "import blipstream, blipstream_build, blipstream_client as c; print(blipstream.__path__, c.__file__)"
    assert str(ROOT) not in run(installed / "python", "-c", imports)

    command: list[str | Path] = [
        installed / "blipstream",
        "serve",
        "--http-port=0",
        "--grpc-port=0",
        "--metrics-port=0",
    ]
    with subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while not lines or lines[-1] != "Ctrl-C stops it":
                lines.append(process.stdout.readline().strip())
                assert lines[-1], process.wait()
            (caption,) = (line for line in lines if " caption " in line)
            (curl,) = (line for line in lines if " curl " in line)
            sample = Path(next(word for word in shlex.split(caption) if word.endswith(".jpg")))
            assert sample.name in samples
            assert samples[sample.name] in run("sh", "-c", caption)
            assert samples[sample.name] in run("sh", "-c", curl)
        finally:
            process.terminate()
            process.wait()
    (repository,) = (home / "cache/blipstream/repositories").iterdir()
    shown = run(installed / "blipstream", "build", "--print-path")
    assert shown == f"{repository}\n"
