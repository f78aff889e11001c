# SPDX-License-Identifier: Apache-2.0
"""The checkpoint under a repository's adapters: where it is, if the repository does not say it."""

from dataclasses import dataclass
from pathlib import Path

from blipstream.command_line import option
from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.files import DEMO_CHECKPOINT, DEMO_NAME
from blipstream_build.cache import cached_repository
from blipstream_build.checkpoint import Checkpoint

DECODER = Path("decoder/1/artifact")  # in a repository


@dataclass(frozen=True)
class Base:
    """What the user says of it, which may be nothing."""

    checkpoint: str | None = None  # a hub name or a folder
    processor: str | None = None  # the one that it was built with, if any

    def repository(self, config: str) -> Path:
        """The user's own repository of it in a configuration, or of the demo. Raises ArtifactError if it has none."""
        checkpoint = Checkpoint.find(self.checkpoint or str(DEMO_CHECKPOINT), self.processor)
        repository = cached_repository(checkpoint.name, checkpoint.revision, config, "auto")
        if not (repository / DECODER).exists():
            raise ArtifactError(
                f"{checkpoint.name} has not been built for --config {config}: build it by `blipstream build`, or give "
                "the --repository that you mean"
            )
        return repository

    def find(self, settings: CheckpointConfig) -> Checkpoint:
        """The checkpoint from which something was built, by its config. Raises ArtifactError if it is not at hand."""
        name = self.checkpoint
        if name is None:
            name = str(DEMO_CHECKPOINT) if settings.checkpoint == DEMO_NAME else settings.checkpoint
            if "/" not in name:  # the build has kept only the last part of its path
                raise ArtifactError(
                    f"an adapter is compared with PEFT on its base, which was built from a folder {name}: give that "
                    f"folder by {option('checkpoint')}"
                )
        found = Checkpoint.find(name, self.processor)
        if found.revision != settings.revision:
            raise ArtifactError(
                f"{name} is {found.name}@{found.revision[:12]}, and the repository was built from {settings.origin}: "
                f"give that one by {option('checkpoint')}, and by {option('processor')} what it was built with"
            )
        return found
