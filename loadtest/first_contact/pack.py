# SPDX-License-Identifier: Apache-2.0
"""Pack first contact for a machine with a GPU, a PyTorch and no network, into one file below 64 MiB.

python loadtest/first_contact/pack.py first-contact.tar.xz --python 3.12

There: tar -xf first-contact.tar.xz && python3 first-contact
"""

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCKS = ("requirements.lock", "requirements-server.lock")
LIMIT = 64 * 2**20  # bytes
XZ = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]  # most of it is code for x86
# what blipstream, its client and its server import, apart from PyTorch
PACKAGES = (
    *("anyio", "click", "grpcio", "h11", "httpcore2", "idna", "ml-dtypes", "numpy", "nvidia-pytriton"),
    *("packaging", "pillow", "protobuf", "python-rapidjson", "safetensors", "tenacity", "tokenizers", "tritonclient"),
    *("truststore", "typing-extensions"),
)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
UNUSED = re.compile(r"/tests?/|\.pyi$|share/build/demo/checkpoint/model\.safetensors$")
OF_ONE_PYTHON = re.compile(r"python_backend_stubs/3\.(\d+)/|libpython3-\w+\.(\d+)\.so")  # the wheel has many


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="pack", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="to write, such as first-contact.tar.xz")
    parser.add_argument("--python", default="3.12", metavar="3.N", help="of that machine; by default 3.12")
    given = parser.parse_args()
    if not given.file.absolute().parent.is_dir():
        parser.error(f"there is no folder {given.file.parent}: make it first")
    with tempfile.TemporaryDirectory() as work:
        packed = Path(work, "first-contact")  # the folder in the archive
        wheels = packed / "wheels"
        wheels.mkdir(parents=True)
        for name in ("__main__.py", "steps.py"):
            shutil.copyfile(HERE / name, packed / name)
        fetch(wheels, given.python)
        for project in (ROOT, ROOT / "client"):
            call("hatchling", "build", "--target", "wheel", "--directory", str(wheels), folder=project)
        for wheel in wheels.glob("*.whl"):
            lighten(wheel, given.python)
        checkpoint, repository = ROOT / "build/demo/checkpoint", packed / "repository"
        options = ["--config", "cuda", "--repository", str(repository)]
        call("blipstream_build", str(checkpoint), *options, folder=ROOT)
        compress(packed, given.file)


def compress(folder: Path, file: Path) -> None:
    """Write a folder as the archive `file`. If that has more than LIMIT bytes, ends this program and leaves no file."""
    print("compressing ...", flush=True)
    unfinished = file.with_name(f"{file.name}.part")
    try:
        with lzma.open(unfinished, "wb", filters=XZ) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
            archive.add(folder, folder.name)
        size, limit = unfinished.stat().st_size / 2**20, LIMIT / 2**20
        if size > limit:
            sys.exit(f"error: {file} would have {size:.1f} MiB, and may have {limit:g}: take something out of PACKAGES")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{file} has {size:.1f} MiB", flush=True)


def fetch(folder: Path, python: str) -> None:
    """Download the locked versions of PACKAGES for that Python."""
    locked = dict(
        re.findall(r"^([\w-]+)==([^\s;]+)", "\n".join((ROOT / lock).read_text("utf-8") for lock in LOCKS), re.MULTILINE)
    )
    named = [f"{package}=={locked[package]}" for package in PACKAGES]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", python, *platforms]
    call("pip", "download", *options, "--dest", str(folder), *named, folder=ROOT)


def lighten(wheel: Path, python: str) -> None:
    """Leave out of a wheel what nothing here reads, and do not compress it: the archive compresses better."""
    lighter = wheel.with_suffix(".lighter")
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(lighter, "w", zipfile.ZIP_STORED) as other:
        for member in archive.infolist():
            found = OF_ONE_PYTHON.search(member.filename)
            if UNUSED.search(member.filename) or (found and f"3.{found[1] or found[2]}" != python):
                continue
            other.writestr(member, archive.read(member), zipfile.ZIP_STORED)
    lighter.replace(wheel)


def call(module: str, *arguments: str, folder: Path) -> None:
    """Run a program of this Python. Ends this one if it fails."""
    print(f"{module} {arguments[0]} ...", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: {module} failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")


if __name__ == "__main__":
    main()
