# SPDX-License-Identifier: Apache-2.0
"""First contact runs on a CPU by the same code as on a GPU: each step, a step that fails, and what is packed."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from first_contact import pack
from first_contact.pack import PACKAGES, lighten
from tests.conftest import ROOT

FOLDER = ROOT / "loadtest" / "first_contact"
STEPS = ("versions", "demo", "neighbours", "sanitizer", "base", "encoder", "decoder", "widths", "arrivals", "triton")


def contact(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FOLDER, "--device", "cpu", *arguments],
        capture_output=True,
        text=True,
        check=False,
        # one thread each, since on a busy machine more threads would wait for each other
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


@pytest.mark.timeout(1200)
def test_every_step(artifacts: Path) -> None:
    done = contact("--repository", artifacts)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.partition("In short:")[2]
    assert re.findall(r"^  (\w+) +done, [\d.]+ s$", summary, re.MULTILINE) == list(STEPS)
    assert "attention {'flash': " in done.stdout
    assert "12 x 12 tokens: " in done.stdout
    assert "  two whales on a purple background" in done.stdout
    assert "24 of 24 requests in 7 strategies equal those of the CPU" in done.stdout
    assert "not run: it needs a GPU and compute-sanitizer" in done.stdout
    errors = re.search(r"f32: relative error of the encoder ([\d.e+-]+), of the decoder ([\d.e+-]+)", done.stdout)
    assert errors
    assert max(map(float, errors.groups())) < 1e-5
    assert re.search(r"   2 images: +[\d.]+ ms, +\d+ images/s", done.stdout)
    assert re.search(r"   4 rows x 12 tokens: +[\d.]+ ms", done.stdout)
    assert "aten::" in done.stdout  # the profile
    assert re.search(r"584: decoder's mix +\d+ us", done.stdout)
    assert re.search(r"577: 4 rows x 12 tokens: +[\d.]+ ms\n584: 4 rows x 12 tokens: +[\d.]+ ms", done.stdout)
    assert re.search(r"5 beams +again: plain captions take", done.stdout)
    assert re.search(r"Triton, 4 in flight, pool of 64 MiB: \d+ images/s", done.stdout)


def test_goes_on_after_a_failure(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'widths' in sys.argv and sys.argv[0].endswith('steps.py'): os.abort()\n"
    )
    done = contact("widths", "sanitizer", "--repository", artifacts, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert re.search(r"== widths: failed with status -6, [\d.]+ s", done.stdout)
    assert re.search(r"== sanitizer: done", done.stdout)


def test_all_that_is_imported_is_packed() -> None:
    """What the steps, the client and the models' own code import, except what PyTorch brings."""
    code = """if True:
        import importlib, pkgutil, sys
        import torch
        import torch.profiler
        before = set(sys.modules)
        import first_contact.steps
        import blipstream.decoding.scheduler, blipstream.serving, blipstream_client
        for package in (blipstream.serving, blipstream_client):
            for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                if not module.ispkg and not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
        new = {name for name, module in sys.modules.items() if module is not None} - before
        print(*{name.partition(".")[0] for name in new} - sys.stdlib_module_names - {"google"})  # google is shared
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    homes = importlib.metadata.packages_distributions()
    needed = {canonicalize_name(home) for module in done.stdout.split() for home in homes.get(module, ())}
    assert {"numpy", "grpcio", "tokenizers", "pillow"} <= needed
    assert needed <= {*PACKAGES, "torch"}, needed - set(PACKAGES)


def test_wheels_become_lighter(tmp_path: Path) -> None:
    wheel = tmp_path / "any-1-py3-none-any.whl"
    kept = ["any/__init__.py", "pytriton/tritonserver/python_backend_stubs/3.12/stub"]
    left_out = ["any/tests/test_any.py", "any/__init__.pyi", "pytriton/tritonserver/python_backend_stubs/3.11/stub"]
    left_out += ["nvidia_pytriton.libs/libpython3-419a3a08.13.so.1.0"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (*kept, *left_out):
            archive.writestr(name, name)
    lighten(wheel, "3.12")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == kept
        assert archive.read(kept[0]).decode() == kept[0]
    assert list(tmp_path.iterdir()) == [wheel]


def test_the_archive_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "first-contact", tmp_path / "packed.tar.xz"
    folder.mkdir()
    (folder / "wheel").write_bytes(os.urandom(2**20))
    monkeypatch.setattr(pack, "LIMIT", 2**21)
    pack.compress(folder, file)
    assert f"{file} has 1.0 MiB" in capsys.readouterr().out
    with tarfile.open(file) as archive:
        assert archive.getnames() == ["first-contact", "first-contact/wheel"]
    file.unlink()
    monkeypatch.setattr(pack, "LIMIT", 2**19)
    with pytest.raises(SystemExit, match=r"packed\.tar\.xz would have 1\.0 MiB, and may have 0\.5: take something out"):
        pack.compress(folder, file)
    assert list(tmp_path.iterdir()) == [folder]


def test_packed_wheels_come_first(tmp_path: Path) -> None:
    """An environment has the packed wheels, executables included, and this Python's packages where there is none."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "click-0-py3-none-any.whl", "w") as archive:
        archive.writestr("click/__init__.py", "packed = True")
        program = zipfile.ZipInfo("click/program")
        program.external_attr = 0o755 << 16
        archive.writestr(program, "#!/bin/sh\necho started")
    code = """if True:
        import subprocess, sys
        from pathlib import Path
        import contact
        python = contact.make_environment(Path(sys.argv[1]))
        code = "import click, subprocess, torch; print(click.packed, torch.__name__, flush=True); "
        code += "subprocess.run([click.__path__[0] + '/program'])"
        subprocess.run([python, "-c", code], check=True)
    """
    shutil.copyfile(FOLDER / "__main__.py", tmp_path / "contact.py")
    command = [sys.executable, "-c", code, str(tmp_path / "environment")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "True torch\nstarted\n", done.stderr


def test_refused(artifacts: Path, tmp_path: Path) -> None:
    unknown = contact("dmo", "--repository", artifacts)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "there is no step dmo: choose of versions, demo" in unknown.stderr
    unbuilt = contact("--repository", tmp_path)
    assert unbuilt.returncode == 2
    assert f"{tmp_path} is no built model repository: make one with" in " ".join(unbuilt.stderr.split())
