# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's encoder as ONNX, which the fixture `exported` gives."""

from dataclasses import dataclass
from pathlib import Path

from blipstream.config import CheckpointConfig


@dataclass(frozen=True)
class Exported:
    """A checkpoint, and its encoder as ONNX."""

    checkpoint: Path
    file: Path
    config: CheckpointConfig
