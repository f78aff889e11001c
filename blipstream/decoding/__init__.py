# SPDX-License-Identifier: Apache-2.0
"""The decoding engine: image_embeds and options in, captions out."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blipstream.config import DType, of_one_checkpoint
from blipstream.decoding.engine import WEIGHTS_NAME, Caption, Engine, Request
from blipstream.decoding.graphed import GraphedEngine
from blipstream.decoding.rows import RowEngine

__all__ = ["WEIGHTS_NAME", "Caption", "Engine", "Request", "load_engine"]


def load_engine(folder: Path, device: str = "cpu", dtype: DType | None = None, *, served: bool = False) -> Engine:
    """The engine that suits a device, in the artifact's dtype unless told otherwise.

    To be `served`, it has to be of one checkpoint with the models around it, and is warmed up. Raises ArtifactError
    where it is not, or the artifact is broken.
    """

    if served:
        of_one_checkpoint(folder)

    def load() -> Engine:
        engine = (RowEngine if device == "cpu" else GraphedEngine).load(folder, device, dtype)
        if served:
            engine.warm_up()
        return engine

    if device != "cpu":
        return load()
    # Each thread that computes gets helpers from OpenMP for as long as it lives, and once they are more than the
    # processors, none spins any more: a step of another thread took 1.6 times as long. So this one ends
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load).result()
