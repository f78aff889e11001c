# SPDX-License-Identifier: Apache-2.0
"""Exact search in blocks, against all products in float64, sorted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blipstream_client import InvalidRequest
from blipstream_client.search.nearest import nearest
from blipstream_client.search.table import Table
from tests.support.embeddings import CHECKPOINT, pa, row, write_table

SIZE = 16


def unit(rng: np.random.Generator, *shape: int) -> Any:
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def found(path: Path, query: Any, k: int) -> list[tuple[str, int]]:
    """Names and numbers of copies."""
    return [(hit.name, hit.copies) for hit in nearest(Table(str(path)).blocks(CHECKPOINT, SIZE), query, k)]


@pytest.mark.parametrize("k", [1, 7, 300, 1000])
@pytest.mark.parametrize("block_rows", [1, 64, 1 << 14])
@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), SIZE), pa.list_(pa.float32())], ids=["fixed", "any"])
def test_it_is_what_all_products_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, block_rows: int, kind: Any
) -> None:
    monkeypatch.setattr("blipstream_client.search.table.BLOCK_ROWS", block_rows)
    rng = np.random.default_rng(k)
    embeddings, query = unit(rng, 500, SIZE), unit(rng, SIZE)
    folder = tmp_path / "parts.parquet"
    folder.mkdir()
    rows = [row(f"{number}.jpg", each.tolist()) for number, each in enumerate(embeddings)]
    for part in range(5):
        write_table(folder / f"part-{part:06}.parquet", rows[part * 100 : part * 100 + 100], kind, row_group_size=33)
    products = [
        (-float(np.dot(each.astype(np.float64), query.astype(np.float64))), n) for n, each in enumerate(embeddings)
    ]
    expected = [number for _, number in sorted(products)][:k]
    hits = nearest(Table(str(folder)).blocks(CHECKPOINT, SIZE), query, k)
    assert [hit.name for hit in hits] == [f"{number}.jpg" for number in expected]
    assert [hit.similarity for hit in hits] == pytest.approx([-products[number][0] for number in expected], abs=1e-6)


def test_rows_without_an_embedding_are_no_hits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    embeddings, query = unit(rng, 20, SIZE), unit(rng, SIZE)
    rows = [row(f"{number}", each.tolist() if number % 3 else None) for number, each in enumerate(embeddings)]
    order = np.argsort(-embeddings.astype(np.float64) @ query)
    expected = [(f"{number}", 0) for number in order if number % 3]
    assert found(write_table(tmp_path / "a.parquet", rows), query, 20) == expected


def test_of_equal_ones_the_first_in_the_table_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blipstream_client.search.table.BLOCK_ROWS", 2)
    one = np.eye(SIZE, dtype=np.float32)[0]
    path = write_table(tmp_path / "a.parquet", [row(name, one.tolist()) for name in "cabfed"])
    assert found(path, one, 4) == [("c", 0), ("a", 0), ("b", 0), ("f", 0)]


def test_the_same_bytes_are_one_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they stand, and if rounding tells their embeddings apart."""
    monkeypatch.setattr("blipstream_client.search.table.BLOCK_ROWS", 2)
    near, far = np.eye(SIZE, dtype=np.float32)[:2]
    rows = [
        row("a", near.tolist(), hash="same"),
        row("b", far.tolist()),
        row("c", (near * np.float32(0.9999)).tolist(), hash="same"),
        row("d", ((near + far) / np.sqrt(2)).tolist()),
        row("e", (near * np.float32(1.0001)).tolist(), hash="same"),
    ]
    path = write_table(tmp_path / "a.parquet", rows)
    assert found(path, near, 1) == [("e", 2)]
    assert found(path, near, 5) == [("e", 2), ("d", 0), ("b", 0)]


@pytest.mark.parametrize("damage", [np.nan, np.inf, None, 3.0])
def test_a_damaged_embedding_is_named(tmp_path: Path, damage: float | None) -> None:
    one = [1.0, *[0.0] * (SIZE - 1)]
    damaged: Any = [damage, *one[1:]]
    path = write_table(tmp_path / "a.parquet", [row("a.jpg", one), row("b.jpg", damaged)])
    with pytest.raises(InvalidRequest, match=r"The embedding of .b\.jpg. is damaged: embed the images again"):
        found(path, np.array(one, np.float32), 1)
