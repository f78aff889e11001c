# SPDX-License-Identifier: Apache-2.0
"""Resolve all lock files again, with the hashes of what may be installed: `make lock`.

PyPI's torch is built for CUDA and names CUDA's packages; all of these are in requirements-cuda.lock. PyTorch's own
index has a build for CPUs, the same version with "+cpu" behind it; that is in requirements-cpu.lock. One of the two is
installed.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
CUDA = re.compile(r"torch==|cuda-|nvidia-(?!nvimgcodec|pytriton)|triton==")

EVERY_PYTHON = ("--universal", "--python-version=3.11")
IMAGE = ("--python-version=3.12", "--python-platform=x86_64-manylinux_2_28", "--constraint=requirements.lock")
GPU = ("--constraint=requirements-cuda.lock", "--extra=gpu-decode", "deploy/requirements.in")
OURS = ("pyproject.toml", "--no-emit-package=blipstream-client", "--extra=build", "--extra=tracing")


def entries(lock: str) -> list[str]:
    """The packages of a lock file, each with its hashes on the lines below it."""
    return re.split(r"\n(?=\S)", lock.strip())


def without_environment(lock: str) -> str:
    """A lock file without the markers that hold everywhere we run; pyproject.toml names them."""
    (environment,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["environments"]
    python, _, platform = environment.replace("python_version", "python_full_version").partition(" and ")
    return lock.replace(f" and {platform}", "").replace(f" ; {python} \\\n", " \\\n")


def resolve(*arguments: str, requirements: str = "") -> list[str]:
    """The packages that uv resolves. Raises click.ClickException if it cannot."""
    uv = Path(sys.executable).with_name("uv")
    options = ("--quiet", "--generate-hashes", "--no-header", "--no-annotate")
    command: list[str | Path] = [uv, "pip", "compile", *options, *arguments]
    done = subprocess.run(command, cwd=ROOT, input=requirements, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr.strip())
    return entries(without_environment(done.stdout))


def cpu_build(torch: str, before: str, index: str) -> list[str]:
    """The lock of the build for CPUs of `torch`: from the index, or the one from `before` if the index does not answer.

    Raises click.ClickException if `before` is of another version.
    """
    try:
        return resolve("-", "--no-deps", f"--default-index={index}", requirements=torch)
    except click.ClickException as error:
        if not before.startswith(f"{torch}+cpu "):
            raise
        click.echo(f"{error.message}\n{index} does not answer, so {torch}+cpu stays as it was", err=True)
        return entries(before)


def write(name: str, packages: list[str]) -> None:
    """Write a lock file."""
    (ROOT / name).write_text("".join(f"{package}\n" for package in packages))


@click.command()
@click.option("--cpu-builds", default=CPU_BUILDS, show_default=True, help="The index of torch's builds for CPUs.")
def main(cpu_builds: str) -> None:
    """Resolve all lock files anew."""
    packages = resolve(*EVERY_PYTHON, *OURS, "--extra=openvino")
    write("requirements.lock", [package for package in packages if not CUDA.match(package)])
    write("requirements-cuda.lock", [package for package in packages if CUDA.match(package)])
    (torch,) = (package.split()[0] for package in packages if package.startswith("torch=="))
    write("requirements-cpu.lock", cpu_build(torch, (ROOT / "requirements-cpu.lock").read_text(), cpu_builds))
    write("requirements-server.lock", resolve(*EVERY_PYTHON, "--group=server", "--no-deps"))
    write("requirements-dev.lock", resolve(*EVERY_PYTHON, "--group=dev", "--constraint=requirements.lock"))
    write("deploy/wheels.lock", resolve(*EVERY_PYTHON, "--group=wheels", "--constraint=requirements-dev.lock"))
    write("deploy/audit.lock", resolve(*EVERY_PYTHON, "--group=audit"))
    write("deploy/requirements.lock", resolve(*IMAGE, *GPU, *OURS))
    write("deploy/loadtest.lock", resolve(*IMAGE, "client/pyproject.toml", "deploy/loadtest.in"))


if __name__ == "__main__":
    main()
