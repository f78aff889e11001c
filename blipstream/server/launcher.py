# SPDX-License-Identifier: Apache-2.0
"""What starts tritonserver: it ends with its parent, has large stacks, and may open many files."""

import os
import resource
import sys
from pathlib import Path

# The limit on the stack of each of Triton's threads. This reserves addresses, which become memory only as they are
# used. On its stack, Triton's HTTP server puts twice the body of a form-typed request (the type by which curl sends
# images unless told otherwise), 16 bytes for each chunk of a body, and about 80 bytes for each level of JSON.
STACK_BYTES = 256 << 20

# Runs as a process of its own, which then becomes tritonserver. If our process dies, the server gets SIGTERM.
LAUNCHER = """
import ctypes, os, resource, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
parent, stack = map(int, sys.argv[1:3])
for limit, value in ((resource.RLIMIT_STACK, stack), (resource.RLIMIT_NOFILE, None)):
    _, most = resource.getrlimit(limit)
    resource.setrlimit(limit, (most if value is None else value, most))
if os.getppid() == parent:
    os.execv(sys.argv[3], sys.argv[3:])
"""


def launched(command: list[str]) -> list[str]:
    """The command line that runs `command` by way of the launcher."""
    return [sys.executable, "-IS", "-c", LAUNCHER, str(os.getpid()), str(stack_bytes()), *command]


def stack_bytes() -> int:
    """The limit on stacks to set, in bytes: STACK_BYTES if permitted; the present one where addresses are limited.

    Never "unlimited": glibc would then make the stacks of threads 2 MiB.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    strict = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    if strict or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return soft
    wanted = max(STACK_BYTES, soft)  # "unlimited" is -1
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
