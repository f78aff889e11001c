# SPDX-License-Identifier: Apache-2.0
"""The model repository that a build writes into: one build at a time, and the configs beside the artifacts."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from blipstream.errors import ArtifactError
from blipstream.files import MODEL_REPOSITORY
from blipstream_build.artifacts import ELSEWHERE, STAGED, make_folder, remove_empty

# A build writes these configs, and git ignores them
PLAN_CONFIG = Path("configs/tensorrt.pbtxt")  # of a model
ENSEMBLE_CONFIGS = tuple(
    model / PLAN_CONFIG
    for model in map(
        Path,
        (
            *("caption", "caption_pixels", "explain", "attention"),
            *("match", "explain_match", "rerank", "embed_image"),
        ),
    )
)
GENERATED = (*(model / PLAN_CONFIG for model in map(Path, ("encoder", "match_encoder"))), *ENSEMBLE_CONFIGS)


def check_is_ours(repository: Path) -> None:
    """Check that a build may write into a folder: it can be made, is empty, or a model repository, even unfinished.

    Raises ArtifactError if it is not.
    """
    if not repository.exists():
        there = next(each for each in repository.absolute().parents if each.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            reason = os.strerror(errno.EACCES if there.is_dir() else errno.ENOTDIR)
            raise ArtifactError(f"{repository} cannot hold artifacts: {reason}; {ELSEWHERE}")
        return
    if not repository.is_dir():
        raise ArtifactError(f"{repository} is a file: give a --repository that is a folder")
    names = {path.name for path in repository.iterdir()} - {"lost+found"}  # a new disk has that one
    ours = (repository / path.name for path in MODEL_REPOSITORY.iterdir())
    if names and not any((model / "config.pbtxt").exists() or (model / "1").exists() for model in ours):
        raise ArtifactError(
            f"{repository.absolute()} holds other files and no model repository: give a --repository that is new, "
            "empty, or from an earlier build"
        )


@contextmanager
def exclusive(repository: Path) -> Iterator[None]:
    """Keep other builds out of a repository, and remove what a killed build left there.

    Waits while another build is at work. The lock is on the folder itself, so no file of it stays behind, and the
    system releases it however a process ends. A folder that stays empty is removed again.

    Raises ArtifactError if the folder can be neither made nor locked.
    """
    while True:
        missing = make_folder(repository)
        lock = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _wait_for(lock, repository)
            if _is_open(repository, lock):  # else the build that we waited for has removed it
                for left in (each for pattern in STAGED for each in repository.glob(pattern)):
                    shutil.rmtree(left, ignore_errors=True)
                yield
                return
        finally:
            remove_empty(missing)  # before the lock is released, so that nobody else has begun to write there
            os.close(lock)


def _wait_for(lock: int, repository: Path) -> None:
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo(f"waiting for another build in {repository}")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as exc:
        raise ArtifactError(
            f"{repository} cannot be locked against other builds ({exc.strerror}): give a --repository on another "
            "file system"
        ) from exc


def _is_open(folder: Path, descriptor: int) -> bool:
    """Whether a path still leads to the folder that was opened."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def materialise(repository: Path) -> None:
    """Copy the configs and model.py files of all models to another folder, without artifacts.

    Each file is replaced in one step, since a server may be started from the folder meanwhile. Raises ArtifactError if
    the folder cannot be written.
    """
    if repository.resolve() == MODEL_REPOSITORY:
        return
    try:
        for pattern in ("*/config.pbtxt", "*/configs/*.pbtxt", "*/1/model.py"):
            for source in MODEL_REPOSITORY.glob(pattern):
                name = source.relative_to(MODEL_REPOSITORY)
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
        # Triton wants a folder for each model's version, though an ensemble's stays empty
        for folder in MODEL_REPOSITORY.glob("*/1"):
            (repository / folder.relative_to(MODEL_REPOSITORY)).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ArtifactError(f"{repository} cannot hold a model repository: {exc.strerror}; {ELSEWHERE}") from exc
