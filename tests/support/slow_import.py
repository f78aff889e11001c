# SPDX-License-Identifier: Apache-2.0
"""A program that is stuck in an import, as one is on a busy machine when a signal comes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.documents import ROOT

CODE = """
import runpy, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == slow:
            print("importing", file=sys.stderr, flush=True)
            time.sleep(300)

_, program, slow, *sys.argv[1:] = sys.argv
sys.meta_path.insert(0, Finder())
runpy.run_module(program, run_name="__main__")
"""


@contextmanager
def importing(program: str, slow: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m PROGRAM ARGUMENTS` while it imports the module `slow`."""
    command = [sys.executable, "-c", CODE, program, slow, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == "importing\n"
            yield process
        finally:
            process.kill()
