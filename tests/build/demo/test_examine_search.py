# SPDX-License-Identifier: Apache-2.0
"""Search by captions, against transformers' own recall."""

import shutil
from pathlib import Path

import pytest

from blipstream.server.triton import TritonServer
from blipstream_build.build import build
from blipstream_client.search.searcher import Searcher
from examine_retrieval import CHECKPOINT, Examinee, retrieval_examination
from examine_search import examine

COUNT, RERANK = 120, 5  # scenes; few, so that not every first one is right, and reranking has something to mend


@pytest.fixture(scope="module")
def figures(f32_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Of a real server with the demo's two checkpoints."""
    repository = shutil.copytree(f32_artifacts, tmp_path_factory.mktemp("retrieval") / "repository")
    build(str(CHECKPOINT), "f32", repository)
    folder = tmp_path_factory.mktemp("scenes")
    with (
        TritonServer(repository=repository, config="cpu", http_port=0, grpc_port=0, metrics_port=0) as server,
        Searcher(server.grpc_url) as searcher,
    ):
        return examine(searcher, COUNT, RERANK, folder)


def test_recall_is_that_of_transformers(figures: dict[str, float]) -> None:
    scenes, examinee = retrieval_examination(COUNT), Examinee()
    similarity = examinee.similarity(examinee.embed_scenes(scenes), [scene.caption for scene in scenes])
    right = [int(each.argmax()) == own for own, each in enumerate(similarity.T)]
    assert figures["recall at 1"] == pytest.approx(sum(right) / COUNT, abs=1.5 / COUNT)  # or a tie


def test_reranking_mends_half_of_what_is_wrong(figures: dict[str, float]) -> None:
    before, after = figures["recall at 1"], figures[f"recall at 1, the first {RERANK} reranked"]
    assert 1 - after <= (1 - before) / 2
