# SPDX-License-Identifier: Apache-2.0
"""First contact with a GPU: ten minutes that say what works there, how fast it is, and where it breaks.

python loadtest/first_contact --repository models

Each step of steps.py has a process of its own and a time limit, so that a crash of CUDA ends that step alone. pack.py
packs all that this needs on a machine without a network. Here, only the standard library is imported.
"""

import argparse
import os
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
STEPS = HERE / "steps.py"
WHEELS = HERE / "wheels"  # where this was packed
PATIENCE = {"cuda": 1, "cpu": 20}  # a CPU may be busy with other things
LIMITS = {  # seconds of each step on a GPU, which follow one another in this order: ten minutes at most
    "versions": 30,
    "demo": 60,
    "neighbours": 60,
    "sanitizer": 60,
    "base": 60,
    "encoder": 60,
    "decoder": 50,
    "widths": 40,
    "arrivals": 40,
    "triton": 140,
}


def main() -> int:
    """Run the steps; return how many failed."""
    parser = argparse.ArgumentParser(prog="first_contact", description=__doc__.partition("\n")[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"any of {', '.join(LIMITS)}; by default all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same code, less of it")
    parser.add_argument("--repository", type=Path, default=HERE / "repository", help="built from the demo checkpoint")
    given = parser.parse_args()
    if unknown := [step for step in given.steps if step not in LIMITS]:
        parser.error(f"there is no step {unknown[0]}: choose of {', '.join(LIMITS)}")
    if not (given.repository / "decoder/1/artifact").is_dir():
        parser.error(
            f"{given.repository} is no built model repository: make one with "
            f"blipstream build build/demo/checkpoint --config {given.device} --repository FOLDER"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the step under way ends, too
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="first-contact-") as work:
        python = make_environment(Path(work, "environment")) if WHEELS.is_dir() else sys.executable
        for step in given.steps or LIMITS:
            command = [python, STEPS, step, "--device", given.device, "--repository", given.repository, "--work", work]
            results[step] = run(step, [str(word) for word in command], LIMITS[step] * PATIENCE[given.device])
    print("\nIn short:", *(f"  {step:<12}{result}" for step, result in results.items()), sep="\n", flush=True)
    return sum(not result.startswith("done") for result in results.values())


def run(step: str, command: list[str], limit: float) -> str:
    """Run a step in a process group of its own, which ends with it. Returns how it went, in words."""
    print(f"\n== {step}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        status = process.wait(limit)
        how = "done" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        how = f"stopped, since {limit:g} s were over"
    finally:
        with suppress(ProcessLookupError):  # it has ended, and left nothing behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = f"{how}, {time.monotonic() - began:.1f} s"
    print(f"== {step}: {result}", flush=True)
    return result


def make_environment(folder: Path) -> Path:
    """A virtual environment with the packed wheels, and with this Python's own packages where there is no wheel."""
    venv.create(folder, symlinks=True)
    names = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    for wheel in WHEELS.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                path = Path(archive.extract(member, packages))
                if mode := member.external_attr >> 16 & 0o777:
                    path.chmod(mode)
    ours = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    (packages / "of_this_python.pth").write_text("\n".join(dict.fromkeys(ours)) + "\n", encoding="utf-8")
    return folder / "bin" / "python"


if __name__ == "__main__":
    sys.exit(main())
