# SPDX-License-Identifier: Apache-2.0
"""Only packages that a lock file names by their hashes are installed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

import click
import pytest

import lock
from lock import CUDA, cpu_build, entries
from tests.conftest import ROOT
from tests.support.deployment import dockerfile, pins

LOCKS = sorted([*ROOT.glob("*.lock"), *ROOT.glob("deploy/*.lock")])
INSTALLED = [ROOT / f"requirements{part}.lock" for part in ("", "-server", "-dev")]
TORCH = f"torch=={pins(ROOT / 'requirements-cuda.lock')['torch']}"  # pyproject.toml permits no other


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_package_has_hashes(path: Path) -> None:
    for entry in entries(path.read_text()):
        head, *hashes = entry.split(" \\\n")
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; .*)?", head)
        assert hashes
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", each) for each in hashes)


def commands() -> Iterator[str]:
    """Every command that installs a Python package, in the Makefile and in the images."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (install,) = re.findall(r"^INSTALL = (.*)$", makefile, re.MULTILINE)
    for line in makefile.replace("$(INSTALL)", install).splitlines():
        if line.startswith("\t"):
            yield from re.findall(r"pip (?:install|wheel).*?(?=&&|\|\||$)", line)
    for each in dockerfile():
        if each.keyword == "RUN":
            yield from re.findall(r"pip (?:install|wheel).*?(?=&&|$)", each.rest)


@pytest.mark.parametrize("command", list(commands()))
def test_nothing_is_installed_without_hashes(command: str) -> None:
    """Except our own packages: they are built here, and their build backend has a hash."""
    assert "--no-deps" in command
    ours = re.search(r"--editable client --editable \.|/tmp/(client|wheels/\*\.whl)$", command.strip())
    if ours:
        assert "--no-index" in command or "--no-build-isolation" in command
    else:
        assert {"--require-hashes", "--only-binary"} <= set(command.split())
        assert "--requirement" in command


def test_no_tool_is_fetched_when_it_starts() -> None:
    assert "uvx" not in (ROOT / "Makefile").read_text() + (ROOT / "deploy" / "audit.py").read_text()


def test_nothing_is_missing_here() -> None:
    """The lock files have all dependencies, though pip looked up none."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert not [line for line in lines if "not installed" in line and not line.startswith("nvidia-pytriton ")]


def test_torch_is_one_of_two_builds() -> None:
    """The build for CPUs comes alone. PyPI's brings all packages of CUDA, and the GPU image has the same ones."""
    cuda = pins(ROOT / "requirements-cuda.lock")
    assert pins(ROOT / "requirements-cpu.lock") == {"torch": f"{cuda['torch']}+cpu"}
    assert {"nvidia-cublas", "triton"} <= cuda.keys()
    assert all(CUDA.match(f"{name}==") for name in cuda)
    assert not [entry for path in INSTALLED for entry in entries(path.read_text()) if CUDA.match(entry)]
    assert cuda.items() <= pins(ROOT / "deploy" / "requirements.lock").items()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index with a build of torch for CPUs."""
    folder = tmp_path / "torch"
    folder.mkdir()
    version = f"{TORCH.removeprefix('torch==')}+cpu"
    wheel = folder / f"torch-{version}-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        info = f"torch-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}#sha256={"2" * 64}">{wheel.name}</a>')
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_torch_for_cpus_is_what_its_index_has(index: str) -> None:
    assert cpu_build(TORCH, "", index) == [f"{TORCH}+cpu \\\n    --hash=sha256:{'2' * 64}"]


def test_torch_for_cpus_stays_where_nobody_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But only in the same version: nobody has tested another one."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    nowhere = "http://127.0.0.1:9"
    before = f"{TORCH}+cpu \\\n    --hash=sha256:{'2' * 64}"
    assert cpu_build(TORCH, f"{before}\n", nowhere) == [before]
    assert nowhere in capsys.readouterr().err
    with pytest.raises(click.ClickException):
        cpu_build(TORCH, f"torch==1.0+cpu \\\n    --hash=sha256:{'2' * 64}\n", nowhere)


def test_markers_that_hold_everywhere_are_left_out() -> None:
    everywhere = (
        "python_full_version < '3.13' and implementation_name == 'cpython' and platform_machine == 'x86_64' and "
        "platform_python_implementation == 'CPython' and sys_platform == 'linux'"
    )
    text = f"a==1 ; {everywhere} \\\n    --hash=x\nb==2 ; {everywhere.replace('3.13', '3.12')} \\\n    --hash=y\n"
    assert lock.without_environment(text) == (
        "a==1 \\\n    --hash=x\nb==2 ; python_full_version < '3.12' \\\n    --hash=y\n"
    )


def test_the_images_build_with_the_backend_of_the_tests() -> None:
    assert pins(ROOT / "deploy/wheels.lock").items() <= pins(ROOT / "requirements-dev.lock").items()
