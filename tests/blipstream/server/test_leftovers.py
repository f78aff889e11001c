# SPDX-License-Identifier: Apache-2.0
"""What a dead server left is removed, and nothing of a living one."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blipstream.server import leftovers
from tests.conftest import ROOT

# claims a place, passes the lock on to a child, and prints the name and the child's number
OWNER = """
import subprocess, sys
from pathlib import Path
from blipstream.server import leftovers
place, name = Path(sys.argv[1]), leftovers.new_name()
lock = leftovers.claim(place, name)
child = subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[lock], stdin=subprocess.PIPE)
print(name, child.pid, flush=True)
child.wait()
"""


@contextmanager
def owner(place: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A process and its child that hold a lock there: the process, the lock's name, and the child's number."""
    command = [sys.executable, "-c", textwrap.dedent(OWNER), str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name, child = process.stdout.readline().split()
        try:
            yield process, name, int(child)
        finally:
            process.kill()  # after which the child reads the end of its input


def leave(place: Path, name: str) -> None:
    """Make the files that a server has beside its lock."""
    (place / f"{name}-shm-1").touch()
    (place / f"{name}-folder").mkdir()
    (place / f"{name}-folder" / "file").touch()
    (place / f"{name}.log").touch()
    (place / f"{name}.log.1").touch()


def test_the_dead_are_swept_and_the_living_are_not(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, name, child):
        leave(tmp_path, name)
        everything = set(tmp_path.iterdir())
        assert len(everything) == 5
        leftovers.sweep(tmp_path)
        assert set(tmp_path.iterdir()) == everything
        process.kill()
        process.wait()
        leftovers.sweep(tmp_path)
        assert set(tmp_path.iterdir()) == everything  # its child lives
        os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.read()  # returns once the child has closed all its files
        leftovers.sweep(tmp_path)
        assert not list(tmp_path.iterdir())


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    for name in ("blipstream-*", "blipstream-1-*", "other-1-abcd", "blipstream-1-xyz"):
        (place / f"{name}.lock").touch()
    (place / "blipstream-2-abcd-shm").touch()  # its lock is missing
    (place / "blipstream-3-abcd.lock").symlink_to(elsewhere / "file")
    os.mkfifo(place / "blipstream-4-abcd.lock")
    before = set(place.iterdir()) - {place / "blipstream-4-abcd.lock"}
    leftovers.sweep(place)
    assert before <= set(place.iterdir())
    (place / "blipstream-5-abcd.lock").touch()
    (place / "blipstream-5-abcd-link").symlink_to(elsewhere)
    leftovers.sweep(place)
    assert not list(place.glob("blipstream-5-*"))
    assert (elsewhere / "file").exists()


def test_a_server_clears_its_own_and_leaves_its_log(tmp_path: Path) -> None:
    name, other = leftovers.new_name(), leftovers.new_name()
    for each in (name, other):
        os.close(leftovers.claim(tmp_path, each))
        leave(tmp_path, each)
    leftovers.clear(tmp_path, name)
    assert {path.name for path in tmp_path.glob(f"{name}*")} == {f"{name}.log", f"{name}.log.1"}
    assert len(list(tmp_path.glob(f"{other}*"))) == 5
