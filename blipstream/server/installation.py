# SPDX-License-Identifier: Apache-2.0
"""Find a `tritonserver` binary, and the environment that it needs."""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from blipstream.errors import ServerError
from blipstream.server.proc import STUB

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds blipstream/
DEFAULT_ENVIRONMENT = {
    # Encoder and decoder share the cores: a thread of one that spins while it waits keeps the other from working.
    # On two cores, 2000 cost no captions under load, and a single caption took 0.8 of its time at 200; at 20000 there
    # were 6 to 10 % fewer captions under load.
    "GOMP_SPINCOUNT": "2000",
    # glibc keeps up to 64 MB of freed memory in each heap, and would use eight heaps a core.
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True)
class Installation:
    """A tritonserver binary, and what the wheel's binary needs besides; a container's finds its own."""

    binary: Path
    libraries: tuple[Path, ...] = ()  # folders
    python_backend: tuple[Path, ...] = ()  # files that must lie side by side
    caches: Path | None = None


def find_installation() -> Installation:
    """Find tritonserver on the PATH or in /opt/tritonserver, else in the wheel nvidia-pytriton. Raises ServerError."""
    places = f"{os.environ.get('PATH', os.defpath)}:/opt/tritonserver/bin"
    binary = shutil.which("tritonserver", path=places)
    return Installation(Path(binary)) if binary else _find_wheel()


def environment(installation: Installation) -> dict[str, str]:
    """This process's environment, with the paths by which the Python in Triton's stub finds our packages.

    Triton 24.10 starts that Python isolated: it ignores PYTHONPATH, and takes its prefix, and so its site-packages,
    from the first python3 on the PATH. Newer releases read PYTHONPATH too.
    """
    packages = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    first: dict[str, tuple[str | Path, ...]] = {
        "PATH": (Path(sys.executable).parent,),
        "PYTHONPATH": (ROOT, *packages),
        "LD_LIBRARY_PATH": installation.libraries,
    }
    paths = {
        name: os.pathsep.join(filter(None, [*map(str, folders), os.environ.get(name, "")]))
        for name, folders in first.items()
    }
    return DEFAULT_ENVIRONMENT | os.environ | paths


def _find_wheel() -> Installation:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "there is no tritonserver here: pip install --no-deps nvidia-pytriton==0.7.0, "
            "or work inside NVIDIA's Triton container"
        )
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    backend = triton / "backends" / "python"
    _check_numpy()
    return Installation(
        binary=triton / "bin" / "tritonserver",
        libraries=(package.parent / "nvidia_pytriton.libs", *_libpython_folder()),
        python_backend=(
            backend / "libtriton_python.so",
            backend / "triton_python_backend_utils.py",
            _find_stub(triton / "python_backend_stubs"),
        ),
        caches=triton / "caches",
    )


def _check_numpy() -> None:
    """Refuse numpy 2: the wheel's stub was compiled against numpy 1 and would read wrong strides."""
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise ServerError(f"the wheel's Python backend needs numpy below 2 and found {version}: pip install 'numpy<2'")


def _find_stub(stubs: Path) -> Path:
    """The stub for the running Python: each embeds one Python version."""
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / wanted / STUB
    if not stub.is_file():
        versions = sorted((p.name for p in stubs.iterdir()), key=lambda name: [int(n) for n in name.split(".")])
        raise ServerError(f"the wheel's tritonserver has no stub for Python {wanted}: use {_one_of(versions)}")
    return stub


def _libpython_folder() -> tuple[Path, ...]:
    """The folder of libpythonX.Y.so.1.0; empty if the system's loader finds it."""
    version = sysconfig.get_config_var("py_version_short")
    name = f"libpython{version}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR"))
    if (folder / name).is_file():
        return (folder,)
    if ctypes.util.find_library(f"python{version}") != name:
        raise ServerError(
            f"tritonserver's Python backend needs {name}, which this Python lacks: "
            f"apt-get install libpython{version}, or a Python built with --enable-shared"
        )
    return ()


def _one_of(names: list[str]) -> str:
    """A list in words: "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
