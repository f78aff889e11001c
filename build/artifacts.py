# SPDX-License-Identifier: Apache-2.0
"""Where artifacts lie in a model repository, when they are up to date, and how they are put there at once."""

import ctypes
import fcntl
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

ROOT = Path(__file__).resolve().parent.parent
SOURCE_REPOSITORY = ROOT / "model_repository"
FINGERPRINT = "fingerprint"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and fs.h
ELSEWHERE = "make room there, or give another --repository"
# the configs that a build writes, and git ignores
ENCODER_CONFIG = Path("encoder/configs/tensorrt.pbtxt")
ENSEMBLE_CONFIGS = (Path("caption/configs/tensorrt.pbtxt"), Path("caption_pixels/configs/tensorrt.pbtxt"))
GENERATED = (ENCODER_CONFIG, *ENSEMBLE_CONFIGS)


@dataclass(frozen=True)
class Artifact:
    """One folder of files that a model loads, and what it is made from."""

    folder: Path
    fingerprint: str  # hash of the checkpoint, the settings, the exporting code and its libraries

    def is_current(self) -> bool:
        """Whether building it again would give what is there."""
        try:
            found = json.loads((self.folder / CONFIG_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get(FINGERPRINT) == self.fingerprint

    @contextmanager
    def staging(self, size: int = 0) -> Iterator[Path]:
        """An empty folder beside the artifact's, on the same disk, removed at the end unless installed.

        Raises ArtifactError in place of what fails in it if the disk does not take `size` bytes: libraries in C++ say
        only that they failed, and remove what they wrote.
        """
        parent = self.folder.parent
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            unlocked = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))  # `sweep` would take it under its own name
        except OSError as exc:
            raise _cannot_hold(parent, exc) from exc
        with _locked(unlocked):
            staged = unlocked.rename(parent / f".{self.folder.name}-{unlocked.name.removeprefix('.new-')}")
            staged.chmod(0o755)  # mkdtemp's 0700 would lock out a server that runs as another user
            try:
                yield staged
            except ArtifactError:
                raise
            except Exception as exc:
                refusal = _refusal(staged / "probe", size)
                if refusal is None:
                    raise
                raise _cannot_hold(parent, refusal) from exc
            finally:
                shutil.rmtree(staged, ignore_errors=True)
                with suppress(OSError):  # where something was installed
                    for folder in made:
                        folder.rmdir()

    def sweep(self) -> None:
        """Remove what a build left beside the artifact when it was killed."""
        for left in self.folder.parent.glob(f".{self.folder.name}-*"):
            with suppress(OSError), _locked(left):  # another build holds it, or its lock
                shutil.rmtree(left)

    def install(self, staged: Path) -> None:
        """Put a finished folder in the artifact's place, at once; what was there takes the other's.

        On a file system that cannot exchange two names (NFS), a reader may find none for a moment.
        """
        if not self.folder.exists():
            staged.rename(self.folder)
        elif not _exchange(staged, self.folder):
            with self.staging() as old:
                self.folder.rename(old / "old")
                staged.rename(self.folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which a process lets go of however it ends. Raises OSError where another has it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _refusal(file: Path, size: int) -> OSError | None:
    """What the system says to a new file of so many bytes, if it does not take it."""
    try:
        with file.open("wb") as probe:
            os.posix_fallocate(probe.fileno(), 0, max(1, size))
    except OSError as exc:
        return exc
    finally:
        with suppress(OSError):
            file.unlink()
    return None


def _cannot_hold(folder: Path, exc: OSError) -> ArtifactError:
    return ArtifactError(f"{folder} cannot hold artifacts: {exc.strerror}; {ELSEWHERE}")


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step, which Python has no call for; whether that could be done."""
    names = (os.fsencode(one), os.fsencode(other))
    return not ctypes.CDLL(None).renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)


def fingerprint(*parts: object, sources: tuple[Path, ...] = ()) -> str:
    """A hash that changes when any of `parts` or of the source files does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def materialise(repository: Path) -> None:
    """Copy the models' configs and adapters, which git tracks, to another folder; artifacts stay behind.

    Each file is replaced at once, since a server may be started from the folder meanwhile.
    """
    if repository.resolve() == SOURCE_REPOSITORY:
        return
    try:
        for pattern in ("*/config.pbtxt", "*/configs/*.pbtxt", "*/1/model.py"):
            for source in SOURCE_REPOSITORY.glob(pattern):
                name = source.relative_to(SOURCE_REPOSITORY)
                if name in GENERATED:
                    continue
                target = repository / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy = target.with_name(f".{target.name}")
                try:
                    shutil.copyfile(source, copy)
                    copy.replace(target)
                finally:
                    copy.unlink(missing_ok=True)
        # Triton wants a folder of each model's version, though an ensemble's stays empty
        for folder in SOURCE_REPOSITORY.glob("*/1"):
            (repository / folder.relative_to(SOURCE_REPOSITORY)).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ArtifactError(f"{repository} cannot hold a model repository: {exc.strerror}; {ELSEWHERE}") from exc
