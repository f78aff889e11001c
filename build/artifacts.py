# SPDX-License-Identifier: Apache-2.0
"""Where artifacts lie in a model repository, when they are up to date, and how they are put there at once."""

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blipstream.config import CONFIG_NAME
from blipstream.errors import ArtifactError

ROOT = Path(__file__).resolve().parent.parent
SOURCE_REPOSITORY = ROOT / "model_repository"
FINGERPRINT = "fingerprint"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and fs.h
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
    def staging(self) -> Iterator[Path]:
        """An empty folder beside the artifact's, on the same disk, removed at the end unless installed."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        except OSError as exc:
            raise ArtifactError(f"{self.folder.parent} cannot hold artifacts: {exc.strerror}") from exc
        staged.chmod(0o755)  # mkdtemp's 0700 would lock out a server that runs as another user
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

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
                shutil.copyfile(source, copy)
                copy.replace(target)
        # Triton wants a folder of each model's version, though an ensemble's stays empty
        for folder in SOURCE_REPOSITORY.glob("*/1"):
            (repository / folder.relative_to(SOURCE_REPOSITORY)).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ArtifactError(f"{repository} cannot hold a model repository: {exc.strerror}") from exc
