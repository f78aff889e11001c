# SPDX-License-Identifier: Apache-2.0
"""Artifacts: the folders of files that models load, whether they are up to date, and how they are put in place."""

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blipstream.config import CONFIG_NAME
from blipstream.errors import ArtifactError

FINGERPRINT = "fingerprint"  # in config.json
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and fs.h
STAGED = ("*/1/.*-*", "decoder/1/adapters/.*-*")  # in a repository: the folders that `Artifact.staging` makes
ELSEWHERE = "make room there, or give another --repository"


@dataclass(frozen=True)
class Artifact:
    """One folder of files that a model loads, and what it is made from."""

    folder: Path
    fingerprint: str  # hash of the checkpoint, the settings, the exporting code and its libraries

    def is_current(self) -> bool:
        """Whether another build would give the same files."""
        try:
            found = json.loads((self.folder / CONFIG_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get(FINGERPRINT) == self.fingerprint

    @contextmanager
    def staging(self, size: int = 0) -> Iterator[Path]:
        """Give an empty folder beside the artifact's, on the same disk. It is removed at the end unless installed.

        If the work within fails and the disk has no room for `size` bytes, raises ArtifactError instead: libraries in
        C++ say only that they failed, and remove what they wrote.
        """
        parent = self.folder.parent
        missing = make_folder(parent)
        staged = None
        try:
            try:
                staged = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=parent))
            except OSError as exc:
                raise _no_room(parent, exc) from exc
            staged.chmod(0o755)  # mkdtemp's 0700 would lock out a server that runs as another user
            try:
                yield staged
            except ArtifactError:
                raise
            except Exception as exc:
                refusal = _refusal(staged / "probe", size)
                if refusal is None:
                    raise
                raise _no_room(parent, refusal) from exc
        finally:
            if staged:
                shutil.rmtree(staged, ignore_errors=True)
            remove_empty(missing)

    def install(self, staged: Path) -> None:
        """Put a finished folder in the artifact's place, in one step. The old files, if any, take the other's place.

        On a file system that cannot exchange two names (NFS), a reader may find no folder for a moment.
        """
        if not self.folder.exists():
            staged.rename(self.folder)
        elif not _exchange(staged, self.folder):
            with self.staging() as old:
                self.folder.rename(old / "old")
                staged.rename(self.folder)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, and return the ones that were missing, itself first. Raises ArtifactError if that fails."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _no_room(folder, exc) from exc
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove the folders that `make_folder` made, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _refusal(file: Path, size: int) -> OSError | None:
    """The system's error if it refuses a new file of `size` bytes."""
    try:
        with file.open("wb") as probe:
            os.posix_fallocate(probe.fileno(), 0, max(1, size))
    except OSError as exc:
        return exc
    finally:
        with suppress(OSError):
            file.unlink()
    return None


def _no_room(folder: Path, exc: OSError) -> ArtifactError:
    return ArtifactError(f"{folder} cannot hold artifacts: {exc.strerror}; {ELSEWHERE}")


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step, for which Python has no call. Returns whether that was possible."""
    names = (os.fsencode(one), os.fsencode(other))
    return not ctypes.CDLL(None).renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)


def fingerprint(*parts: object, sources: tuple[Path, ...] = ()) -> str:
    """A hash that changes if any of `parts` or of the source files does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()
