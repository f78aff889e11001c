# SPDX-License-Identifier: Apache-2.0
"""Examine search through a server of the demo's retrieval checkpoint: how often a caption finds its own scene first.

python build/demo/examine_search.py grpc://localhost:8001
"""

import argparse
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from blipstream_client.bulk.extras import pyarrow
from blipstream_client.search.searcher import Searcher
from blipstream_client.search.table import Table
from examine import SCENE_SIZE
from examine_retrieval import EXAMINATION_SIZE, retrieval_examination
from scenes import require_font

RERANK = 10  # of the nearest scenes
AT_ONCE = 8  # requests


def examine(searcher: Searcher, count: int, rerank: int, folder: Path) -> dict[str, float]:
    """The recalls at 1 among `count` scenes, which are drawn into the folder, before and after reranking."""
    captions = {}
    for number, scene in enumerate(retrieval_examination(count)):
        name = str(folder / f"{number:04}.png")
        scene.draw(SCENE_SIZE).save(name)
        captions[name] = scene.caption
    path = folder / "embeddings.parquet"
    _embed(searcher, list(captions), path)
    table, right, right_reranked = Table(str(path)), 0, 0
    for name, caption in captions.items():
        hits = searcher.nearest(table, searcher.embed_text(caption), rerank)
        right += hits[0].name == name
        right_reranked += searcher.reranked(hits, caption)[0].name == name
    return {
        "recall at 1": right / count,
        f"recall at 1, the first {rerank} reranked": right_reranked / count,
    }


def _embed(searcher: Searcher, names: list[str], path: Path) -> None:
    """Write the embeddings of images as `blipstream embed` does."""
    with ThreadPoolExecutor(AT_ONCE) as executor:
        embeddings = [embedding.tolist() for embedding in executor.map(searcher.embed_image, names)]
    arrow = pyarrow("The examination")
    matching = searcher.info().matching
    columns = {
        "name": names,
        "embedding": arrow.array(embeddings, arrow.list_(arrow.float32(), len(embeddings[0]))),
        "checkpoint": [matching and matching.checkpoint] * len(names),
        "hash": [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names],
        "error": arrow.nulls(len(names), arrow.string()),
    }
    arrow.parquet.write_table(arrow.table(columns), path)


def main() -> None:
    """Print the recalls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a server of build/demo/retrieval-checkpoint")
    parser.add_argument("--scenes", type=int, default=EXAMINATION_SIZE)
    parser.add_argument("--rerank", type=int, default=RERANK)
    arguments = parser.parse_args()
    require_font()
    with TemporaryDirectory() as folder, Searcher(arguments.url) as searcher:
        figures = examine(searcher, arguments.scenes, arguments.rerank, Path(folder))
    for what, figure in figures.items():
        print(f"{figure:.4f} {what}, {arguments.scenes:,} scenes")


if __name__ == "__main__":
    main()
