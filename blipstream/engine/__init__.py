# SPDX-License-Identifier: Apache-2.0
"""The decoding engine: image_embeds and options in, captions out."""

from pathlib import Path

from blipstream.config import DType
from blipstream.engine.base import WEIGHTS_NAME, Caption, Engine, Request
from blipstream.engine.graphed import GraphedEngine
from blipstream.engine.rows import RowEngine

__all__ = ["WEIGHTS_NAME", "Caption", "Engine", "Request", "load_engine"]


def load_engine(folder: Path, device: str = "cpu", dtype: DType | None = None) -> Engine:
    """The engine that suits a device, in the artifact's dtype unless told otherwise.

    Raises ArtifactError where the artifact is broken.
    """
    kind = RowEngine if device == "cpu" else GraphedEngine
    return kind.load(folder, device, dtype)
