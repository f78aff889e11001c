# SPDX-License-Identifier: Apache-2.0
"""Tables that a search refuses, in one sentence each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blipstream_client import InvalidRequest
from blipstream_client.search.table import Block, Table
from tests.support.embeddings import CHECKPOINT, pa, row, write_table

ONE = [1.0, 0.0]
ROWS = [row(f"{number}.jpg", ONE) for number in range(5)]


def blocks(path: Path, checkpoint: str | None = CHECKPOINT, size: int = 2) -> list[Block]:
    return [*Table(str(path)).blocks(checkpoint, size)]


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        blocks(path, **arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("a.parquet")


def test_no_file(path: Path) -> None:
    assert "No such file or directory" in refusal(path)


def test_no_parquet(path: Path) -> None:
    path.write_text('{"name": "a.jpg"}\n')
    assert refusal(path).startswith("Cannot read ")


def test_a_folder_without_parts(path: Path) -> None:
    path.mkdir()
    assert refusal(path) == "a.parquet is a folder without Parquet files: name what `blipstream embed` wrote"


@pytest.mark.parametrize("where", [0.5, 0.95])
def test_a_part_that_is_cut_off_is_named(path: Path, where: float) -> None:
    path.mkdir()
    for number in (1, 2):
        part = write_table(path / f"part-{number:06}.parquet", ROWS)
    part.write_bytes(part.read_bytes()[: int(part.stat().st_size * where)])
    assert "part-000002.parquet" in refusal(path)


def test_a_part_that_is_damaged_inside_is_named(path: Path) -> None:
    write_table(path, [row(f"{number}.jpg", ONE) for number in range(1000)])
    content = bytearray(path.read_bytes())
    content[50:400] = bytes(350)
    path.write_bytes(content)
    assert refusal(path).startswith("Cannot read a.parquet: ")


def test_other_outputs_of_embed(path: Path) -> None:
    told = refusal(path.with_name("a.jsonl"))
    assert told == "Expected Parquet, got a.jsonl: `blipstream embed --output NAME.parquet` writes it"


@pytest.mark.parametrize("missing", ["name", "embedding", "checkpoint", "hash", "error"])
def test_a_parquet_file_of_something_else(path: Path, missing: str) -> None:
    write_table(path, ROWS)
    pa.parquet.write_table(pa.parquet.read_table(path).drop_columns([missing]), path)
    told = refusal(path)
    assert told.startswith("Expected the columns name, embedding, checkpoint, hash, error in a.parquet, got ")
    assert told.endswith(f" without {missing}: name a table that `blipstream embed` wrote")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("embedding", lambda _: pa.array(["text"] * 5), "Expected lists of float32 in the column embedding"),
        ("embedding", lambda _: pa.array([[0.5, 0.5]] * 5), "of a.parquet, got list<element: double>"),
        ("name", lambda _: pa.array(range(5)), "Expected text in the column name of a.parquet, got int64"),
        ("hash", lambda _: pa.nulls(5), "Expected text in the column hash of a.parquet, got null"),
    ],
)
def test_columns_of_other_types(path: Path, name: str, change: Callable[[Any], Any], sentence: str) -> None:
    table = pa.parquet.read_table(write_table(path, ROWS))
    changed = table.set_column(table.schema.get_field_index(name), name, change(table))
    pa.parquet.write_table(changed, path)
    assert sentence in refusal(path)


def test_no_rows(path: Path) -> None:
    assert refusal(write_table(path, [])) == "a.parquet has no rows: embed images first"


def test_nothing_but_errors(path: Path) -> None:
    write_table(path, [row("a.jpg", None, error="no image"), row("b.jpg", None)])
    assert refusal(path) == "None of the 2 rows of a.parquet has an embedding: no image"


def test_another_checkpoint(path: Path) -> None:
    """It is known by its revision."""
    write_table(path, ROWS)
    assert blocks(path, "another-folder@1234")
    assert refusal(path, checkpoint="emoji-demo@5678") == (
        "a.parquet has embeddings of the checkpoint 'emoji-demo@1234', and the server has 'emoji-demo@5678':"
        " ask a server that has the same, or embed the images again"
    )
    assert "and the server has unknown" in refusal(path, checkpoint=None)


def test_several_checkpoints(path: Path) -> None:
    write_table(path, [*ROWS, row("other.jpg", ONE, checkpoint="other@5678")])
    assert "has embeddings of the checkpoint 'other@5678', and the server has 'emoji-demo@1234'" in refusal(path)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.list_(pa.float32())], ids=["fixed", "any"])
def test_another_width(path: Path, kind: Any) -> None:
    write_table(path, ROWS, kind)
    assert refusal(path, size=256) == (
        "a.parquet has embeddings of 2 numbers, and the server's have 256: embed the images again with this server"
    )


def test_embeddings_of_different_widths(path: Path) -> None:
    write_table(path, [*ROWS, row("a.jpg", [1.0, 0.0, 0.0])])
    assert "has embeddings of 3 numbers, and the server's have 2" in refusal(path)


def test_a_large_table_comes_in_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is one row group."""
    monkeypatch.setattr("blipstream_client.search.table.BLOCK_ROWS", 100)
    write_table(path, [row(f"{number}.jpg", ONE) for number in range(1050)])
    found = blocks(path)
    assert [len(block.embeddings) for block in found] == [100] * 10 + [50]
    assert [name.as_py() for block in found for name in block.names] == [f"{number}.jpg" for number in range(1050)]
