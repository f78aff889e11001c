# SPDX-License-Identifier: Apache-2.0
"""What a server has in shared memory and among the temporary files, and how to tell whether it still lives.

    blipstream-PID-NUMBER.lock    held by every process of the server, so as long as one of them lives
    blipstream-PID-NUMBER-*       shared memory and folders
    blipstream-PID-NUMBER.log*    the log, unless it has a place of its own

A server removes its own files when it stops. One that was killed cannot, so the next server to start removes all files
whose lock nobody holds. This works where process numbers would not: in containers that share /dev/shm.
"""

import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

PREFIX = "blipstream-"
LOCK = ".lock"


def new_name() -> str:
    """A name for a server of this process."""
    return f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


def claim(place: Path, name: str) -> int:
    """Create and hold the lock of a server's files in a folder. Children that inherit the open file hold it too."""
    unlocked = place / f"{name}.new"  # under its final name, another server could sweep it before it is locked
    lock = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(place / f"{name}{LOCK}")
    return lock


def clear(place: Path, name: str) -> None:
    """Remove a server's files from a folder, except its log. The lock goes last, because `sweep` finds files by it."""
    _remove(place, f"{name}-*")
    (place / f"{name}{LOCK}").unlink(missing_ok=True)


def sweep(place: Path) -> None:
    """Remove from a folder the files of all servers of which no process lives."""
    for file in place.glob(f"{PREFIX}*{LOCK}"):
        if not re.fullmatch(rf"{PREFIX}\d+-[0-9a-f]+", file.stem):  # else it could be a pattern for `glob`
            continue
        with suppress(OSError):  # another process holds it, or has removed it just now; or it is another user's
            lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(place, f"{file.stem}.log*")
                clear(place, file.stem)
            finally:
                os.close(lock)


def _remove(place: Path, pattern: str) -> None:
    for path in place.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
