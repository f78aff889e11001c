# SPDX-License-Identifier: Apache-2.0
"""A matcher's calibration, which `blipstream calibrate` writes beside its artifacts.

There it outlives a build of the same checkpoint, and it goes where the model goes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError

NAME = "calibration.json"  # in the version folder of the model `matcher`
COMMAND = "`blipstream calibrate`"


@dataclass(frozen=True)
class Calibration:
    """How to read a checkpoint's logits: match = logistic(logit / temperature)."""

    origin: str  # the checkpoint's, for messages
    revision: str  # the checkpoint's
    temperature: float
    threshold: float  # the match from which on a text belongs to an image

    def save(self, version: Path) -> None:
        """Write the file into a version folder in one step, since a server may be starting."""
        new = version / f".{NAME}"
        new.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        new.replace(version / NAME)

    @classmethod
    def load(cls, version: Path) -> "Calibration | None":
        """The calibration in a version folder; None if there is none. Raises ArtifactError if it is broken."""
        file = version / NAME
        try:
            calibration = cls(**json.loads(file.read_text(encoding="utf-8")))
            if not (0 < calibration.temperature < float("inf") and 0 <= calibration.threshold <= 1):
                raise ValueError(calibration)
            return calibration
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError) as exc:
            raise ArtifactError(f"{file} is not one that {COMMAND} writes: run that again, or remove the file") from exc

    @classmethod
    def of(cls, artifact: Path) -> "Calibration | None":
        """The calibration of a matcher's artifact; None if there is none.

        Raises ArtifactError if it is broken, or of another checkpoint.
        """
        calibration, config = cls.load(artifact.parent), CheckpointConfig.load(artifact)
        if calibration and calibration.revision != config.revision:
            raise ArtifactError(
                f"{artifact.parent / NAME} is of {calibration.origin}, and the matcher beside it of {config.origin}: "
                f"run {COMMAND} again, or remove the file"
            )
        return calibration
