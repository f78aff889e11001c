# SPDX-License-Identifier: Apache-2.0
"""Adapters of a model repository: added, listed, removed. A running server sees it at the next request for one."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
from safetensors import SafetensorError, safe_open

from blipstream.adapters import FOLDER_NAME, NAME, WEIGHTS_NAME, AdapterConfig, adapter_names
from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream_build.adapters.base import DECODER, Base
from blipstream_build.adapters.peft_folder import PeftFolder
from blipstream_build.artifacts import FINGERPRINT, Artifact, fingerprint
from blipstream_build.inspection import listed
from blipstream_build.repository import exclusive
from blipstream_build.stages import stage

HERE = Path(__file__).resolve().parent
SOURCES = (HERE / "convert.py", HERE / "peft_folder.py", HERE / "renewal.py")  # a change makes adapters stale


def find_adapters(given: Iterable[tuple[str, Path]]) -> dict[str, PeftFolder]:
    """The adapters in folders of PEFT's, by the names that they are to have.

    Raises ArtifactError if a name cannot be one or is given twice, or a folder holds no adapter that can be served.
    """
    found: dict[str, PeftFolder] = {}
    for name, folder in given:
        if not NAME.fullmatch(name):
            raise ArtifactError(
                f"{name[:80]!r} cannot name an adapter: expected at most 64 letters, digits, points, hyphens and "
                "underscores, a letter or a digit first"
            )
        if name in found:
            raise ArtifactError(f"the adapter {name} is given twice: give each a name of its own")
        found[name] = PeftFolder.find(folder)
    return found


def add(
    repository: Path,
    adapters: Mapping[str, PeftFolder],
    base: Base,
    language: str | None = None,
    prepared: Callable[[], None] = lambda: None,
) -> None:
    """Convert the adapters that are not up to date, compare each with PEFT, and only then install it.

    `language` takes the place of the one that an adapter names. `prepared` is called before anything is written, once
    all libraries are imported. Raises ArtifactError if an adapter does not fit what the repository was built from.
    """
    CheckpointConfig.load(repository / DECODER)  # `exclusive` would make a folder that is not there
    with exclusive(repository):
        settings = CheckpointConfig.load(repository / DECODER)
        stale = {}
        for name, adapter in adapters.items():
            adapter.check_base(settings)
            artifact = _artifact(repository, name, adapter, settings, language)
            if _is_current(artifact):
                click.echo(f"adapter {name} is up to date with {adapter.folder}")
            else:
                stale[name] = artifact
        if not stale:
            return
        checkpoint = base.find(settings)
        for name in stale:
            if not adapters[name].base_revision:
                click.echo(
                    f"{adapters[name].folder} does not say which revision of {settings.checkpoint} it was made for"
                )
        with stage("loading PyTorch, transformers and PEFT"):
            from blipstream_build.adapters.renewal import renew
        prepared()
        for name, artifact in stale.items():
            renew(name, adapters[name], artifact, settings, checkpoint, language)
            click.echo(f"installed adapter {name} in {repository}")


@dataclass(frozen=True)
class Installed:
    """An adapter in a repository."""

    name: str
    size: int  # bytes on the disk
    config: AdapterConfig | None  # None if it cannot be read

    def fault(self, settings: CheckpointConfig) -> str:
        """Why a server refuses it, "" if it does not."""
        if self.config is None:
            return "of another version"
        return "" if self.config.base_revision == settings.revision else "for another base"


def installed(repository: Path) -> list[Installed]:
    """The adapters in a repository, by name."""
    found = []
    folder = repository / DECODER.parent / FOLDER_NAME
    for name in adapter_names(folder):
        config = None
        with suppress(ArtifactError):
            config = AdapterConfig.load(folder / name)
        size = sum(file.stat().st_size for file in (folder / name).iterdir())
        found.append(Installed(name, size, config))
    return found


def remove(repository: Path, names: Iterable[str]) -> None:
    """Remove adapters. Raises ArtifactError if there is no such one."""
    folder = repository / DECODER.parent / FOLDER_NAME
    CheckpointConfig.load(repository / DECODER)  # `exclusive` would make a folder that is not there
    with exclusive(repository):
        there = adapter_names(folder)
        for name in names:
            if name not in there:
                raise ArtifactError(
                    f"there is no adapter {name[:80]!r} in {repository}: it has {listed(there) or 'none'}"
                )
        for name in dict.fromkeys(names):
            with Artifact(folder / name, "").staging() as old:  # at whose end it is gone
                (folder / name).rename(old / name)


def misfits(repository: Path) -> list[str]:
    """The names of adapters that were made for another checkpoint than the one that is there, or cannot be read."""
    found = installed(repository)
    return [each.name for each in found if each.fault(CheckpointConfig.load(repository / DECODER))]


def _artifact(
    repository: Path, name: str, adapter: PeftFolder, settings: CheckpointConfig, language: str | None
) -> Artifact:
    parts = (settings.revision, settings.dtype, adapter.revision, language)
    return Artifact(repository / DECODER.parent / FOLDER_NAME / name, fingerprint(*parts, sources=SOURCES))


def _is_current(artifact: Artifact) -> bool:
    """Whether it is there and another conversion would give the same."""
    try:
        AdapterConfig.load(artifact.folder)
        with safe_open(artifact.folder / WEIGHTS_NAME, "np") as file:
            return (file.metadata() or {}).get(FINGERPRINT) == artifact.fingerprint
    except (ArtifactError, OSError, SafetensorError):
        return False
