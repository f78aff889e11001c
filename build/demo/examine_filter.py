# SPDX-License-Identifier: Apache-2.0
"""Write pairs of scenes and captions, of which 30 % are wrong, and examine what `blipstream filter` made of them.

python build/demo/examine_filter.py pairs.parquet
blipstream filter pairs.parquet --output clean.parquet
python build/demo/examine_filter.py pairs.parquet clean.parquet
"""

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from scenes import examination, require_font

COUNT, SPOILED = 1000, 0.3  # pairs, and the part of them whose captions are wrong
RIGHT = "right"
SIDE = 384  # pixels of a scene
QUALITY = 92  # of JPEG


class Pair(NamedTuple):
    """An image and a caption."""

    image: bytes
    caption: str
    kind: str  # RIGHT, or what is wrong with the caption


def spoiled_pairs(count: int) -> Iterator[Pair]:
    """Scenes of held-out pairs of objects. A part of the captions is wrong, each kind as often as any other."""
    rng = random.Random("spoiled pairs")
    scenes = list(examination(count))
    wrong = sorted(rng.sample(range(count), round(count * SPOILED)))
    for number, scene in enumerate(scenes):
        description = scene.description
        ways = {
            "another scene's caption": scenes[number - 1].description,
            "a wrong object": description.with_wrong_object(rng),
            "a wrong background": description.with_wrong_background(rng),
            "the objects swapped": description.swapped(),
            "left of for above, or above for left of": description.with_wrong_arrangement(),
        }
        kind = list(ways)[wrong.index(number) % len(ways)] if number in wrong else RIGHT
        file = io.BytesIO()
        scene.draw(SIDE).save(file, "JPEG", quality=QUALITY)
        yield Pair(file.getvalue(), str(ways.get(kind, description)), kind)


def write_pairs(path: Path, count: int) -> None:
    """Write the pairs as a Parquet file."""
    pq.write_table(pa.Table.from_pylist([pair._asdict() for pair in spoiled_pairs(count)]), path, row_group_size=100)


def examine(pairs: Path, output: Path) -> dict[str, float]:
    """Precision and recall of the kept captions, and of each kind how many got the right verdict."""
    kinds = pq.read_table(pairs, columns=["kind"])["kind"].to_pylist()
    kept = [verdict == "kept" for verdict in pq.read_table(output, columns=["verdict"])["verdict"].to_pylist()]
    right = [kind == RIGHT for kind in kinds]
    both = sum(map(min, kept, right))
    verdicts = [*zip(kept, right, kinds, strict=True)]
    of_kind = {kind: [one == other for one, other, each in verdicts if each == kind] for kind in dict.fromkeys(kinds)}
    return {
        "precision": both / sum(kept),
        "recall": both / sum(right),
        **{kind: sum(correct) / len(correct) for kind, correct in of_kind.items()},
    }


def main() -> None:
    """Write the pairs, or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("output", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.output is None:
        require_font()
        write_pairs(arguments.pairs, COUNT)
        return
    for what, figure in examine(arguments.pairs, arguments.output).items():
        print(f"{figure:.4f} {what}")


if __name__ == "__main__":
    main()
