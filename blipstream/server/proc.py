# SPDX-License-Identifier: Apache-2.0
"""The server's processes, as Linux's /proc describes them."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blipstream.server.open_files import NO_FILES_LEFT

STUB = "triton_python_backend_stub"  # the program that runs a Python model
ZOMBIE, HALTED = "Z", "T"  # states: ended and not reaped; stopped by a signal
WORKING = frozenset("RD")  # running or waiting for a processor; waiting for a disk
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl.h


class Process(NamedTuple):
    """A line of /proc/PID/stat, as far as it matters here."""

    state: str
    parent: int
    group: int


def processes_of_group(group: int) -> dict[int, Process]:
    """The processes of a process group by their number. Raises OSError if no more files may be open."""
    return {pid: process for pid, process in _stats("/proc").items() if process.group == group}


def running(group: int) -> set[int]:
    """The processes of a process group that have not ended."""
    return {pid for pid, process in processes_of_group(group).items() if process.state != ZOMBIE}


def is_halted(pid: int) -> bool:
    """Whether a signal has stopped a process."""
    process = _stat(f"/proc/{pid}/stat")
    return process is not None and process.state == HALTED


def is_working(pid: int) -> bool:
    """Whether a thread of a process computes, or would if it had a processor."""
    return any(thread.state in WORKING for thread in _stats(f"/proc/{pid}/task").values())


def _stats(folder: str) -> dict[int, Process]:
    """The processes or threads in a folder below /proc."""
    try:
        numbers = [name for name in os.listdir(folder) if name.isdigit()]  # noqa: PTH208 - much faster than pathlib
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return {}
    return {int(number): stat for number in numbers if (stat := _stat(f"{folder}/{number}/stat"))}


def _stat(file: str) -> Process | None:
    """A process or thread; None if it has ended. Raises OSError if no more files may be open."""
    try:
        with open(file, "rb") as stat:  # noqa: PTH123
            state, parent, group = stat.read().rpartition(b")")[2].split()[:3]
    except OSError as error:
        if error.errno in NO_FILES_LEFT:
            raise
        return None
    return Process(state.decode(), int(parent), int(group))


def stub_model(pid: int) -> str | None:
    """The model that a process of the Python backend serves; None for any other process."""
    try:
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None
    # the first argument is REPOSITORY/MODEL/VERSION/model.py
    return Path(arguments[0]).parents[1].name if Path(program).name == STUB else None


def adopt_orphans() -> None:
    """Make this process the parent of a dead server's children, to reap them: in a container nobody else may."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap(group: int) -> bool:
    """Reap the ended children of a process group, and return whether no child is left in it."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
        return False  # the threads of one child are still ending
    return True
