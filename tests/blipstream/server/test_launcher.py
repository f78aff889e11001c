# SPDX-License-Identifier: Apache-2.0
"""The limits that tritonserver starts with."""

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from blipstream.server import proc
from blipstream.server.installation import ROOT
from blipstream.server.launcher import STACK_BYTES
from blipstream.server.triton import TritonServer
from tests.support.double_model import ANY

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_stacks_are_large_and_files_many(repository: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with TritonServer(repository=repository, **ANY) as server:
        group = proc.processes_of_group(server.pid)
        assert len(group) == 2
        assert {resource.prlimit(pid, resource.RLIMIT_STACK)[0] for pid in group} == {STACK_BYTES}
        assert {resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in group} == {(most, most)}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("-Ss unlimited", STACK_BYTES),  # glibc would make the stacks of threads 2 MiB
        ("-Ss 8192", STACK_BYTES),
        ("-Ss 1048576", 1 << 30),
        ("-s 65536", 64 << 20),
        ("-Ss 8192; ulimit -v 16777216", 8 << 20),
    ],
)
def test_size_of_stacks(limits: str, expected: int) -> None:
    code = "from blipstream.server.launcher import stack_bytes; print(stack_bytes())"
    command = f"ulimit {limits}; exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected
