# SPDX-License-Identifier: Apache-2.0
"""What a server has in shared memory and among the temporary files, and whose it is.

    blipstream-PID-NUMBER.lock    held by every process of the server, as long as one of them lives
    blipstream-PID-NUMBER-*       regions and folders
    blipstream-PID-NUMBER.log*    the log, unless it has a place of its own

A server removes its own when it stops. One that was killed cannot, so the next to start removes whatever has a lock
that nobody holds. That tells the living from the dead where process numbers do not: in containers that share /dev/shm.
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
    """For a server of this process."""
    return f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


def claim(place: Path, name: str) -> int:
    """The open lock of what will have that name there; whoever inherits it holds it, too."""
    unlocked = place / f"{name}.new"  # under its own name, somebody could sweep it before it is locked
    lock = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(place / f"{name}{LOCK}")
    return lock


def clear(place: Path, name: str) -> None:
    """Remove what has that name there, but for a log; the lock last, by which the next server finds the rest."""
    _remove(place, f"{name}-*")
    (place / f"{name}{LOCK}").unlink(missing_ok=True)


def sweep(place: Path) -> None:
    """Remove what servers left there of which no process lives."""
    for file in place.glob(f"{PREFIX}*{LOCK}"):
        if not re.fullmatch(rf"{PREFIX}\d+-[0-9a-f]+", file.stem):  # no pattern for `glob`
            continue
        with suppress(OSError):  # somebody holds it, or may keep it to himself, or removed it just now
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
