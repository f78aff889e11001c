# SPDX-License-Identifier: Apache-2.0
"""`python -m blipstream.server` as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blipstream.server.installation import ROOT

STOPPED = "stopping; requests in flight have 10 seconds\nstopped\n"  # what it prints when it is asked to stop
ANY_PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A serving process with its temporary files in `folder`, and the lines that it greets with."""
    path = os.pathsep.join([str(ROOT / "client"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "blipstream.server", *ANY_PORTS, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process, greeting(process)
        finally:
            process.terminate()
            process.communicate()


def greeting(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "Ctrl-C stops it":
        line = process.stdout.readline()
        assert line, process.communicate()
        lines.append(line.strip())
    return lines


def child(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
