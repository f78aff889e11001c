# SPDX-License-Identifier: Apache-2.0
"""The model repository that a load test or a tuning serves."""

from pathlib import Path

from blipstream.server.checkpoint import build


def repository_to_serve(checkpoint: str | None, config: str, repository: Path | None) -> Path:
    """The repository as it is, or with what is built into it, as for `blipstream serve`. Raises ServerError.

    If the build fails, exits with the build's status: it has said why.
    """
    if repository and not checkpoint:
        return repository
    return build(checkpoint, config, repository)
