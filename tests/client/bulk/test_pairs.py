# SPDX-License-Identifier: Apache-2.0
"""Images and their texts: which belong together, in every kind of input."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from blipstream_client import InvalidImage, InvalidRequest
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.pairs import PairSources

pa = pyarrow("This test")
pq = pa.parquet

TABLES = ["a.csv", "a.jsonl"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pairs(*inputs: str, **arguments: Any) -> list[tuple[str, bytes | str, tuple[str, ...]]]:
    """Name, content and texts of each item."""
    return [(item.name, item.load(), item.texts) for item in PairSources(inputs, **arguments).items()]


def texts(*inputs: str, **arguments: Any) -> list[tuple[str, ...]]:
    return [item.texts for item in PairSources(inputs, **arguments).items()]


def write_table(name: str, rows: list[dict[str, Any]]) -> None:
    if name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    Path(name).write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")


def write_tar(mode: str, files: Mapping[str, bytes]) -> None:
    with tarfile.open("a.tar", mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
@pytest.mark.parametrize("name", ["caption", "text", "words"])
def test_a_text_in_each_row_of_a_parquet_file(jpeg: bytes, kind: str, name: str) -> None:
    column = pa.array(["a cat", "", None, "zwei Wale 🐋"])
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    pq.write_table(pa.table({"image": [jpeg + bytes(number) for number in range(4)], name: column}), "a.parquet")
    arguments: dict[str, Any] = {"text_column": name} if name == "words" else {}
    assert pairs("a.parquet", **arguments) == [
        ("a.parquet#0", jpeg, ("a cat",)),
        ("a.parquet#1", jpeg + bytes(1), ("",)),
        ("a.parquet#2", jpeg + bytes(2), ()),
        ("a.parquet#3", jpeg + bytes(3), ("zwei Wale 🐋",)),
    ]
    assert PairSources(["a.parquet"], **arguments).count() == 4


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())], ids=str)
def test_several_texts_in_each_row_of_a_parquet_file(jpeg: bytes, kind: Any) -> None:
    column = pa.array([["a cat", "a dog"], [], None, ["an owl"]], kind)
    pq.write_table(pa.table({"text": column, "image": [jpeg] * 4}), "a.parquet", row_group_size=3)
    assert texts("a.parquet") == [("a cat", "a dog"), (), (), ("an owl",)]
    assert PairSources(["a.parquet"]).count() is None  # without reading them


def test_the_columns_of_a_parquet_file(jpeg: bytes) -> None:
    pq.write_table(pa.table({"image": [jpeg], "caption": [7], "more": ["a"]}), "a.parquet")
    for arguments, got in (
        ({}, "caption or text of a.parquet, got caption of int64"),
        ({"text_column": "no"}, "no of a.parquet, got image, caption, more"),
    ):
        with pytest.raises(InvalidRequest, match=f"Expected texts in a column {got}: name it with --text-column"):
            PairSources(["a.parquet"], **arguments).check()  # type: ignore[arg-type]
    PairSources(["a.parquet"], text_column="more").check()


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_paths_and_urls(jpeg: bytes, table: str) -> None:
    """Paths start at the table's folder, and may lead into it."""
    Path("deep").mkdir()
    Path("deep/a.jpg").write_bytes(jpeg)
    rows: list[dict[str, Any]] = [
        {"id": 1, "path": "a.jpg", "caption": "a cat, or two"},
        {"id": 2, "path": "https://example.com/b.jpg", "caption": "ein Bär"},
        {"id": 3, "path": "../deep/./a.jpg", "caption": "x"},
        {"id": 4, "path": "/etc/hostname", "caption": "y"},
    ]
    write_table(f"deep/{table}", rows)
    items = [*PairSources([f"deep/{table}"]).items()]
    assert [item.name for item in items[:2]] == ["deep/a.jpg", "https://example.com/b.jpg"]
    assert [item.texts for item in items] == [(str(row["caption"]),) for row in rows]
    assert items[0].load() == "deep/a.jpg"
    for item in items[2:]:
        with pytest.raises(InvalidImage, match=r"leads out of the table's folder: .*; --allow-local-paths permits it"):
            item.load()
    allowed = pairs(f"deep/{table}", allow_local_paths=True)
    assert [content for _, content, _ in allowed[2:]] == ["deep/../deep/./a.jpg", "/etc/hostname"]
    assert PairSources([f"deep/{table}"]).count() == 4


def test_lists_and_gaps_in_json_lines() -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a.jpg", "text": ["a cat", "a \ud800"]},
        {"image": None, "text": "b"},
        {"image": "c.jpg"},
    ]
    write_table("a.jsonl", rows)
    first, second, third = PairSources(["a.jsonl"]).items()
    assert (first.texts, second.texts, third.texts) == (("a cat", "a \\ud800"), ("b",), ())
    assert second.name == "a.jsonl#1"
    with pytest.raises(InvalidImage, match="Expected a path or a URL in the row, got None"):
        second.load()
    assert PairSources(["a.jsonl"]).count() == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b'{"image": "a.jpg"}\n',
            "Expected a column caption or text in a.jsonl, got image: name it with --text-column",
        ),
        (b'{"text": "a"}\n', "Expected a column image or .* in a.jsonl, got text: name it with --column"),
        (b"[1]\n", r"Expected an object, got \[1\]"),
        (b"{\n", "Cannot read line 1 of a.jsonl: "),
        (b'{"a": "' + bytes(2**20), "It has more than 1,048,576 bytes"),
    ],
)
def test_tables_that_cannot_be_read(content: bytes, words: str) -> None:
    """That is told before the run begins."""
    Path("a.jsonl").write_bytes(content)
    with pytest.raises(InvalidRequest, match=words):
        PairSources(["a.jsonl"]).check()


def test_texts_beside_images(jpeg: bytes) -> None:
    for name in ("b.jpg", "a.PNG", "deep/c.v1.jpg", "none.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(jpeg)
    for name, text in (("a.txt", " a cat\n"), ("b.txt", "ein Bär"), ("deep/c.v1.txt", "c"), ("alone.txt", "nothing")):
        Path(name).write_text(text, encoding="utf-8")
    Path("notes.md").touch()
    sources = PairSources(["."])
    assert [(item.name, item.texts) for item in sources.items()] == [
        ("./a.PNG", ("a cat",)),
        ("./b.jpg", ("ein Bär",)),
        ("./none.jpg", ()),
        ("./deep/c.v1.jpg", ("c",)),
    ]
    assert str(sources.left_out) == (
        "1 file left out for not being the image or the text of a pair: 1 empty (./notes.md)"
    )
    assert sources.count() == 4


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_that_has_a_table(jpeg: bytes, table: str) -> None:
    """The table says what the folder has."""
    for name in ("one/a.jpg", "one/train/b.jpg", "two/c.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(jpeg)
    write_table(f"one/{table}", [{"file_name": "train/b.jpg", "text": "a cat"}])
    assert pairs(".") == [("./one/train/b.jpg", "./one/train/b.jpg", ("a cat",)), ("./two/c.jpg", "./two/c.jpg", ())]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_samples_in_a_tar_file(jpeg: bytes, mode: str) -> None:
    """As webdataset has them, in any order within a sample."""
    images = [jpeg + bytes([number]) * 2_000_000 for number in range(5)]
    files = {
        "0.jpg": images[0],
        "0.json": b'{"caption": "not this", "width": 8}',
        "0.txt": b"a cat\n",
        "1.txt": "ein Bär".encode(),
        "1.jpg": images[1],
        "2.jpg": images[2],
        "2.json": b'{"text": ["a", "b"]}',
        "2.mask.png": images[2],
        "deep/0.jpg": images[3],
        "deep/0.npy": b"numbers",
        "deep/1.txt": b"alone",
        "3.jpg": images[4],
        "3.json": b"{",
    }
    write_tar(mode, files)
    sources = PairSources(["a.tar"])
    assert [(item.name, item.load(), item.texts) for item in sources.items()] == [
        ("a.tar/0.jpg", images[0], ("a cat",)),
        ("a.tar/1.jpg", images[1], ("ein Bär",)),
        ("a.tar/2.jpg", images[2], ("a", "b")),
        ("a.tar/deep/0.jpg", images[3], ()),
        ("a.tar/3.jpg", images[4], ()),
    ]
    assert str(sources.left_out) == (
        "3 files left out for not being the image or the text of a pair: 1 second image (a.tar/2.mask.png),"
        " 1 .npy (a.tar/deep/0.npy), 1 text without an image (a.tar/deep/1.txt)"
    )
    assert texts("a.tar", text_column="caption")[2] == ()


def test_links_and_large_texts_in_a_tar_file(jpeg: bytes) -> None:
    write_tar("w", {"0.jpg": jpeg, "0.txt": b"a" * (2**20 + 1)})
    with tarfile.open("a.tar", "a") as tar:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
        tar.addfile(link)
    sources = PairSources(["a.tar"])
    assert [item.texts for item in sources.items()] == [()]
    assert "1 .txt (a.tar/0.txt), 1 link (a.tar/1.jpg)" in str(sources.left_out)


def test_items_are_found_by_their_names(jpeg: bytes) -> None:
    """So that the report can show them."""
    Path("images").mkdir()
    for name in ("a", "b"):
        Path(f"images/{name}.jpg").write_bytes(jpeg)
        Path(f"images/{name}.txt").write_text(name)
    write_tar("w", {"0.jpg": jpeg + b"0", "0.txt": b"zero", "1.jpg": jpeg + b"1", "1.txt": b"one"})
    pq.write_table(pa.table({"image": [jpeg + b"2", jpeg + b"3"], "text": ["two", "three"]}), "a.parquet")
    write_table("a.csv", [{"image": "images/a.jpg", "text": "a"}, {"image": "images/b.jpg", "text": "b"}])
    sources = PairSources(["a.tar", "a.parquet", "images"])
    wanted = {"a.tar/1.jpg", "a.parquet#1", "images/b.jpg", "images/gone.jpg"}
    assert [(item.name, item.load()) for item in sources.find(wanted)] == [
        ("a.tar/1.jpg", jpeg + b"1"),
        ("a.parquet#1", jpeg + b"3"),
        ("images/b.jpg", "images/b.jpg"),
    ]
    assert [item.load() for item in PairSources(["a.csv"]).find({"images/b.jpg"})] == ["images/b.jpg"]
