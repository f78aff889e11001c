# SPDX-License-Identifier: Apache-2.0
"""What a captioner and a retrieval checkpoint share in one repository: `preprocess`, and equal encoders."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from blipstream.config import (
    ARTIFACTS,
    MATCHING_ARTIFACTS,
    CheckpointConfig,
    image_encoder_of,
    misfit,
    readable_configs,
)
from blipstream.errors import ArtifactError


def has_captioner(repository: Path) -> bool:
    """Whether a captioner has been built there. `preprocess` is then its own."""
    return bool(_found(repository, "decoder"))


def shares_encoder(repository: Path, matcher: Path) -> bool:
    """Whether a matcher that was built uses the captioner's encoder, and can still do so."""
    with suppress(ArtifactError):
        return bool(_found(repository, "encoder")) and image_encoder_of(matcher, repository) == "encoder"
    return False


def why_not_matching(repository: Path) -> str:
    """Why what is there for matching does not fit the captioner any more; empty if it does, or there is nothing."""
    return next(filter(None, (misfit(each, repository) for each in _found(repository, "matcher") if each.matching)), "")


def with_shared_encoder(config: CheckpointConfig, repository: Path, runtime: str) -> CheckpointConfig:
    """The config of a retrieval checkpoint, which names the captioner's encoder if that computes the same."""
    with suppress(ArtifactError):
        other = CheckpointConfig.load(repository / "encoder/1" / runtime)
        if (other.vision, other.dtype) == (config.vision, config.dtype):
            return replace(config, matching=replace(config.match_config, encoder="encoder"))
    return config


def check_image_size(config: CheckpointConfig, repository: Path) -> None:
    """Check that `preprocess` makes pixels of a size that both checkpoints in a repository take.

    Raises ArtifactError if it does not.
    """
    others = ARTIFACTS if config.matching else MATCHING_ARTIFACTS
    if config.matching and not has_captioner(repository):
        return
    for other in (each for model in others for each in _found(repository, model)):
        if other.vision.image_size != config.vision.image_size:
            raise ArtifactError(
                f"{config.checkpoint} takes images of {config.vision.image_size} pixels a side, and {other.checkpoint} "
                f"in {repository} takes {other.vision.image_size}: give another --repository"
            )


def _found(repository: Path, model: str) -> list[CheckpointConfig]:
    """The configs of a model's artifacts, in all runtimes."""
    return list(readable_configs(repository / model / "1", (ARTIFACTS | MATCHING_ARTIFACTS)[model]))
