# SPDX-License-Identifier: Apache-2.0
"""Finding tritonserver, and the environment that it gets."""

from pathlib import Path

import pytest

from blipstream.errors import ServerError
from blipstream.server import installation, proc
from blipstream.server.triton import TritonServer
from tests.support.double_model import ANY

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_environment_goes_before_our_defaults(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with TritonServer(repository=repository, **ANY) as server:
        environments = [
            Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in proc.processes_of_group(server.pid)
        ]
    assert len(environments) == 2  # of Triton and of the model's stub
    assert all(b"GOMP_SPINCOUNT=7" in each and b"MALLOC_ARENA_MAX=2" in each for each in environments)


def test_python_without_a_stub(tmp_path: Path) -> None:
    for version in ("3.9", "3.10", "3.8"):
        (tmp_path / "stubs" / version).mkdir(parents=True)
    with pytest.raises(ServerError, match=r"has no stub for Python 3\.\d+: use 3\.8, 3\.9 or 3\.10"):
        installation._find_stub(tmp_path / "stubs")


def test_python_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: {"LIBDIR": "/nowhere"}.get(name, "3.99"))
    with pytest.raises(ServerError, match=r"needs libpython3\.99\.so\.1\.0.*apt-get install libpython3\.99"):
        installation._libpython_folder()


def test_too_new_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.4.6")
    with pytest.raises(ServerError, match=r"needs numpy below 2 and found 2\.4\.6"):
        installation._check_numpy()


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ServerError, match="there is no tritonserver"):
        installation.find_installation()
