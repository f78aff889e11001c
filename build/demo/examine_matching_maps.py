# SPDX-License-Identifier: Apache-2.0
"""The pointing game of matching: how often an object's word has the peak of its heatmap in the object.

blipstream serve --repository MODELS        (the demo's retrieval checkpoint is built there)
python build/demo/examine_matching_maps.py
"""

from collections.abc import Iterable
from io import BytesIO
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt

from blipstream_client import Client
from scenes import Placement, Scene, examination, require_font

SCENE_SIZE = 384  # pixels


class Figures(NamedTuple):
    """Shares of words, in scenes of two objects, whose heatmap has its peak in one of them."""

    own: float  # the one that the word names
    other: float  # the other one


def examine(client: Client, scenes: Iterable[Scene], layer: int | None = None) -> Figures:
    """The figures of a server. Raises BlipstreamError."""
    hits: list[tuple[bool, bool]] = []
    for scene in scenes:
        scene.draw(SCENE_SIZE).save(file := BytesIO(), "PNG")
        explanation = client.explain_match(file.getvalue(), scene.caption, layer=layer)
        words, end = explanation.words, 0
        for placement, other in zip(scene.placements, reversed(scene.placements), strict=True):
            name = tuple(placement.name.split())
            begin = next(at for at in range(end, len(words)) if words[at : at + len(name)] == name)
            end = begin + len(name)
            hits += [
                (points_into(heatmap, placement), points_into(heatmap, other))
                for heatmap in explanation.attention[begin:end]
            ]
    own, others = np.mean(hits, 0).tolist()
    return Figures(own, others)


def points_into(heatmap: npt.NDArray[np.float32], placement: Placement) -> bool:
    """Whether the middle of the heatmap's strongest patch lies within the object."""
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    x, y = (column + 0.5) / heatmap.shape[1], (row + 0.5) / heatmap.shape[0]
    return bool(max(abs(x - placement.x), abs(y - placement.y)) <= placement.size / 2)


@click.command()
@click.option("--url", default="grpc://localhost:8001", show_default=True)
@click.option("--scenes", default=500, show_default=True)
@click.option("--layers", default=2, show_default=True, help="Of the text encoder, without the last.")
def main(url: str, scenes: int, layers: int) -> None:
    """Play the pointing game on held-out scenes: with the mean of all layers, and with each."""
    require_font()
    with Client(url) as client:
        for layer in (None, *range(layers)):
            figures = examine(client, examination(scenes), layer)
            name = "the mean of all layers" if layer is None else f"layer {layer}"
            print(f"{name}: {figures.own:.1%} in the word's own object, {figures.other:.1%} in the other one")


if __name__ == "__main__":
    main()
