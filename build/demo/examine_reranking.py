# SPDX-License-Identifier: Apache-2.0
"""Measure what reranking gains: exact captions of one draw, of the best of several by matching, and of an oracle.

blipstream serve --repository MODELS        (both of the demo's checkpoints are built there)
python build/demo/examine_reranking.py
"""

from collections.abc import Iterable
from functools import partial
from io import BytesIO
from typing import NamedTuple

import click

from blipstream_client import Client
from scenes import Scene, examination, require_font

SCENE_SIZE = 384  # pixels
DRAWS = 8


class Figures(NamedTuple):
    """Shares of scenes whose caption is exactly right."""

    one_draw: float
    best_by_matching: float
    oracle: float  # which knows the right one, if it was drawn

    @property
    def gained(self) -> float:
        """The part of what the oracle gains over one draw that matching gains, too."""
        possible = self.oracle - self.one_draw
        return (self.best_by_matching - self.one_draw) / possible if possible else 1.0


def examine(client: Client, scenes: Iterable[Scene], temperature: float) -> Figures:
    """The figures of a server, with a seed for each scene. Raises BlipstreamError."""
    drawn = best = possible = count = 0
    for seed, scene in enumerate(scenes):
        scene.draw(SCENE_SIZE).save(file := BytesIO(), "PNG")
        draw = partial(client.caption, file.getvalue(), do_sample=True, temperature=temperature, seed=seed)
        draws = draw(num_captions=DRAWS)
        texts = [draws.text, *(each.text for each in draws.alternatives)]
        drawn += texts.count(scene.caption)
        possible += scene.caption in texts
        best += draw(rerank=DRAWS).text == scene.caption
        count += 1
    return Figures(drawn / DRAWS / count, best / count, possible / count)


@click.command()
@click.option("--url", default="grpc://localhost:8001", show_default=True)
@click.option("--scenes", default=300, show_default=True)
@click.option("--temperature", default=1.5, show_default=True)
def main(url: str, scenes: int, temperature: float) -> None:
    """Measure what reranking gains on held-out scenes: exact captions of the best of several draws by matching."""
    require_font()
    with Client(url) as client:
        figures = examine(client, examination(scenes), temperature)
    print(f"exact captions of {scenes} scenes, drawn at temperature {temperature}:")
    print(f"{figures.one_draw:.1%} one draw")
    print(f"{figures.best_by_matching:.1%} the best of {DRAWS} by matching, {figures.gained:.0%} of what can be gained")
    print(f"{figures.oracle:.1%} an oracle")


if __name__ == "__main__":
    main()
