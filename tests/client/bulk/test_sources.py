# SPDX-License-Identifier: Apache-2.0
import io
import tarfile
from pathlib import Path

import pytest

from blipstream_client import InvalidRequest
from blipstream_client.bulk import sources
from blipstream_client.bulk.extras import pyarrow

pa = pyarrow("This test")
pq = pa.parquet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images at several depths, and what is none."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "deep/er/d.jpeg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str) -> list[str]:
    return [item.name for item in sources.items(inputs)]


def loaded(*inputs: str, column: str | None = None) -> list[tuple[str, bytes | str]]:
    return [(item.name, item.load()) for item in sources.items(inputs, column)]


def write_tar(path: Path, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number in range(5):
            for suffix, content in (("jpg", f"image {number}"), ("txt", "words")):
                info = tarfile.TarInfo(f"{number:05}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))


def test_folders_are_searched_in_order(folder: Path) -> None:
    expected = ["images/a.PNG", "images/b.jpg", "images/deep/c.webp", "images/deep/er/d.jpeg"]
    assert names("images") == expected
    assert sources.count(["images"]) == 4
    assert loaded("images")[0] == ("images/a.PNG", "images/a.PNG")
    assert folder.is_dir()


@pytest.mark.usefixtures("folder")
def test_files_patterns_and_urls() -> None:
    assert names("images/b.jpg", "images/*.jpg", "https://example.com/a.parquet") == [
        "images/b.jpg",
        "images/b.jpg",
        "https://example.com/a.parquet",
    ]
    assert names("images/**/*.*e*") == ["images/deep/c.webp", "images/deep/er/d.jpeg"]


@pytest.mark.parametrize(("name", "mode"), [("shard.tar", "w"), ("shard.tar.gz", "w:gz"), ("shard.tgz", "w:gz")])
def test_tar_shards(folder: Path, name: str, mode: str) -> None:
    write_tar(folder / name, mode)
    expected = [(f"{name}/{number:05}.jpg", f"image {number}".encode()) for number in range(5)]
    assert loaded(name) == expected
    assert names(name) == [each for each, _ in expected]  # without reading them
    assert sources.count([name]) == (5 if mode == "w" else None)


def test_shards_in_a_folder(folder: Path) -> None:
    write_tar(folder / "images" / "z.tar")
    assert len(names("images")) == 4 + 5


def test_a_tar_file_that_ends_too_early(folder: Path) -> None:
    write_tar(folder / "whole.tar")
    (folder / "half.tar").write_bytes((folder / "whole.tar").read_bytes()[:700])
    with pytest.raises(InvalidRequest, match=r"Cannot read the tar file half\.tar"):
        loaded("half.tar")


@pytest.mark.parametrize("column", ["image", "url", "photo"])
def test_parquet_columns(folder: Path, column: str) -> None:
    values = [b"1", b"22", None] if column != "url" else ["http://a/b.jpg", "c.jpg", None]
    pq.write_table(pa.table({"id": [7, 8, 9], column: values}), folder / "a.parquet")
    given = column if column == "photo" else None
    assert loaded("a.parquet", column=given) == [(f"a.parquet#{i}", value or b"") for i, value in enumerate(values)]
    assert sources.count(["a.parquet"]) == 3


def test_parquet_as_datasets_writes_it(folder: Path) -> None:
    values = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    pq.write_table(pa.table({"image": values}), folder / "a.parquet")
    assert [content for _, content in loaded("a.parquet")] == [b"1", "b.jpg"]


def test_parquet_without_images(folder: Path) -> None:
    pq.write_table(pa.table({"id": [7]}), folder / "a.parquet")
    with pytest.raises(InvalidRequest, match=r"Expected a column image or .* got id: name it with --column"):
        loaded("a.parquet")
    with pytest.raises(InvalidRequest, match="Expected a column photo in"):
        loaded("a.parquet", column="photo")
    (folder / "b.parquet").write_bytes(b"no table")
    with pytest.raises(InvalidRequest, match=r"Cannot read the Parquet file b\.parquet"):
        loaded("b.parquet")


def test_a_list_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a.jpg\n\n http://b/c.jpg \n"))
    assert names("-") == ["a.jpg", "http://b/c.jpg"]
    assert sources.count(["-"]) is None


@pytest.mark.usefixtures("folder")
def test_what_is_not_there() -> None:
    sources.check(["images", "images/b.jpg", "images/*.jpg", "-", "https://example.com/a.jpg"])
    with pytest.raises(InvalidRequest, match="There is no file or folder nowhere"):
        sources.check(["images", "nowhere"])
    with pytest.raises(InvalidRequest, match=r"No file is like \*\.gif"):
        sources.check(["*.gif"])
