# SPDX-License-Identifier: Apache-2.0
"""Run pip, and say how far it is: one line that renews itself on a terminal, else a line every ten seconds.

python deploy/install_packages.py .venv/bin/pip install --requirement requirements.lock

It runs before anything is installed, so it needs the standard library alone. pip's errors are printed as they are.
"""

import re
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

LINE_SECONDS = 10.0  # between lines, if standard output is no terminal
RENEW_SECONDS = 1.0
WIDTH = 80  # columns


class Installation:
    """How far pip is, out of what it prints."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.found = 0
        self.name = ""
        self.unpacks = False

    def read(self, line: str) -> None:
        """Take in a line of pip's."""
        if collecting := re.match(r"(?:Collecting|Requirement already satisfied:) ([\w.-]+)", line):
            self.found += 1
            self.name = collecting[1]
        elif line.startswith("Installing collected packages"):
            self.unpacks = True

    def __str__(self) -> str:
        if self.unpacks:
            return f"unpacking {self.total} {'package' if self.total == 1 else 'packages'}"
        return f"{self.found} of {self.total} packages ({self.name})" if self.name else "asking the index"


def main(command: list[str]) -> int:
    """Run pip's command, and return its exit status."""
    locks = [Path(after) for option, after in pairwise(command) if option == "--requirement"]
    total = sum(len(re.findall(r"^[\w.-]+==", lock.read_text(encoding="utf-8"), re.MULTILINE)) for lock in locks)
    installation, over, began = Installation(total), threading.Event(), time.monotonic()

    def tell() -> None:
        renews = sys.stdout.isatty()
        while not over.wait(RENEW_SECONDS if renews else LINE_SECONDS):
            line = f"    {installation}, {time.monotonic() - began:.0f} s"[: WIDTH - 1]
            print(f"\r{line:{WIDTH - 1}}" if renews else line, end="" if renews else "\n", flush=True)
        if renews:
            print(f"\r{'':{WIDTH - 1}}\r", end="", flush=True)

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        with subprocess.Popen([*command, "--progress-bar", "off"], stdout=subprocess.PIPE, text=True) as pip:
            assert pip.stdout is not None  # noqa: S101
            for line in pip.stdout:
                installation.read(line)
    finally:
        over.set()
        thread.join()
    return pip.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
