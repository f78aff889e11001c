# SPDX-License-Identifier: Apache-2.0
"""The decoding engine: image_embeds and options in, captions out."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blipstream.config import DType, of_one_checkpoint
from blipstream.decoding.engine import WEIGHTS_NAME, Engine
from blipstream.decoding.request import Caption, Request, TextDelta
from blipstream.heatmaps import Explanation

__all__ = ["WEIGHTS_NAME", "Caption", "Engine", "Explanation", "Request", "TextDelta", "load_engine"]


def load_engine(folder: Path, device: str = "cpu", dtype: DType | None = None, *, served: bool = False) -> Engine:
    """The engine on a device, in the artifact's dtype unless told otherwise.

    If it is to be `served`, it must be of the same checkpoint as the models around it. Raises ArtifactError if it is
    not, or if the artifact is broken.
    """
    if served:
        of_one_checkpoint(folder)
    if device != "cpu":
        return Engine.load(folder, device, dtype)
    # Each thread that computes gets helpers from OpenMP for as long as it lives. Once they are more than the
    # processors, none spins any more, and a step of another thread took 1.6 times as long. So this thread ends
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(Engine.load, folder, device, dtype).result()
