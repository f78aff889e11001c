# SPDX-License-Identifier: Apache-2.0
"""Run perf_analyzer, Triton's own load generator, on the mix of requests of a load test.

python loadtest/perf_analyzer.py --host grpc://localhost:8001 --kind beams -- --concurrency-range 1:16:5

perf_analyzer is part of NVIDIA's Triton SDK container. Elsewhere, this program takes it once from the last wheel of
tritonclient that has it. It finds its libraries beside those of the embedded server.
"""

import base64
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from blipstream.command_line import OutputFile
from blipstream.server.network import bypass_proxies
from blipstream_loadtest import mix, options

CACHE = Path(__file__).resolve().parent / ".perf_analyzer_cache"
WHEEL = "tritonclient==2.51.0"  # of Triton 24.10, like the embedded server
LIBRARIES = ("libb64", "libcudart")  # it links to them; nvidia_pytriton.libs has them with a hash in their names
STEPS = 32  # different requests, sent in turn


class PerfAnalyzerError(Exception):
    """perf_analyzer cannot run; the text is one sentence."""


def input_data(chosen: mix.Mix, kind: str) -> dict[str, Any]:
    """Requests of one kind, drawn from the mix, in the JSON that perf_analyzer's --input-data reads.

    perf_analyzer decodes base64 and sends the bytes as they are, so an element of BYTES needs its length before it.
    """
    rng = random.Random(0)  # noqa: S311
    only = mix.Mix(chosen.images, chosen.sizes, {kind: 1.0}, chosen.options)
    return {"data": [_step(only.draw(rng)) for _ in range(STEPS)]}


def _step(request: mix.CaptionRequest) -> dict[str, Any]:
    element = len(request.image).to_bytes(4, "little") + request.image
    chosen = {name: {"content": [value], "shape": [1]} for name, value in request.options.items()}
    return {"image": {"content": {"b64": base64.b64encode(element).decode()}, "shape": [1]}, **chosen}


def find() -> tuple[Path, dict[str, str]]:
    """Find or fetch the program; return its path and the environment that it needs. Raises PerfAnalyzerError."""
    installed = shutil.which("perf_analyzer")
    if installed:
        return Path(installed), dict(os.environ)
    program = CACHE / "perf_analyzer"
    if not program.exists():
        fetch()
    return program, os.environ | {"LD_LIBRARY_PATH": str(CACHE)}


def fetch() -> None:
    """Take the program out of the wheel and link its libraries beside it. Raises PerfAnalyzerError."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.origin:
        raise PerfAnalyzerError(
            "there is no perf_analyzer here: install nvidia-pytriton, or use Triton's SDK container"
        )
    libraries = Path(spec.origin).parent.parent / "nvidia_pytriton.libs"
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--platform", "manylinux1_x86_64", "--dest", folder, WHEEL],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise PerfAnalyzerError(f"{WHEEL}, which carries perf_analyzer, cannot be fetched: {reason}")
        for name in LIBRARIES:
            file = next(libraries.glob(f"{name}-*"))  # libb64-98cb6333.so.0d stands for libb64.so.0d
            suffix = file.name.partition(".so.")[2]
            link = CACHE / f"{name}.so.{suffix.split('.')[0]}"
            link.unlink(missing_ok=True)
            link.symlink_to(file)
        with zipfile.ZipFile(wheels[0]) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/bin/perf_analyzer"))
            program = Path(folder, "perf_analyzer")
            program.write_bytes(archive.read(member))
        program.chmod(0o755)
        program.rename(CACHE / "perf_analyzer")


@click.command(context_settings=options.SETTINGS)
@click.option("--host", default="grpc://localhost:8001", help="URL of the server, grpc:// or http://.")
@click.option("--kind", default="greedy", help="Kind of request in the mix.")
@options.MIX
@click.option("--write", type=OutputFile(), help="Only write the input data to this file.")
@click.argument("arguments", nargs=-1)
def main(host: str, kind: str, mix_path: Path, write: Path | None, arguments: tuple[str, ...]) -> None:
    """Run perf_analyzer against a server. ARGUMENTS, after --, go to perf_analyzer."""
    bypass_proxies()
    try:
        chosen = mix.load(mix_path)
        kinds = [each for each in chosen.kinds if each not in chosen.streams]
        if kind not in kinds:
            raise PerfAnalyzerError(
                f"{mix_path} has no unary requests of kind {kind!r}: choose one of {', '.join(kinds)}"
            )
        text = json.dumps(input_data(chosen, kind))
        if write:
            write.write_text(text, encoding="utf-8")
            return
        program, environment = find()
    except (OSError, PerfAnalyzerError, mix.MixError) as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(2)
    url = urlsplit(host)
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        command = [str(program), "-m", "caption", "-u", url.netloc, "-i", url.scheme, "--input-data", file.name]
        shapes = [f"--shape={name}:1" for name in ("image", *chosen.options[kind])]
        sys.exit(subprocess.run([*command, *shapes, *arguments], env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
