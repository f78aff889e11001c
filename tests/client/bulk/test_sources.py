# SPDX-License-Identifier: Apache-2.0
import io
import os
import shutil
import sys
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


def write_tar(path: Path, mode: str = "w", first: str = "00000.jpg") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number in range(5):
            for suffix, content in (("jpg", f"image {number}"), ("txt", "words")):
                info = tarfile.TarInfo(f"{number:05}.{suffix}" if tar.offset else first)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))


def standard_input(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content))


def test_folders_are_searched_in_order(folder: Path) -> None:
    expected = ["images/a.PNG", "images/b.jpg", "images/deep/c.webp", "images/deep/er/d.jpeg"]
    assert names("images") == expected
    assert sources.count(["images"]) == 4
    assert loaded("images")[0] == ("images/a.PNG", "images/a.PNG")
    assert folder.is_dir()


def test_results_in_a_folder_are_no_images(folder: Path) -> None:
    for name in ("images/captions.parquet", "images/deep/older.parquet"):
        (folder / name).mkdir()
        (folder / name / "_job.json").touch()
        (folder / name / "part-000001.parquet").touch()
    assert len(names("images")) == 4
    assert names("images/**/*.p*") == []


def test_a_folder_that_cannot_be_read(folder: Path) -> None:
    found = sources.items(["images"])
    assert next(found).name == "images/a.PNG"
    shutil.rmtree(folder / "images" / "deep")
    with pytest.raises(InvalidRequest, match=r"Cannot read images: .*'images/deep'"):
        list(found)


def test_names_that_are_not_utf_8(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = os.fsdecode(b"\xff")
    shutil.move(folder / "images" / "b.jpg", folder / "images" / f"{strange}.jpg")
    write_tar(folder / "images" / f"{strange}.tar", first=f"{strange}.jpg")
    pq.write_table(pa.table({"image": [b"1"]}), folder / "a.parquet")
    (folder / "a.parquet").rename(folder / "images" / f"{strange}.parquet")
    expected = ["images/\\udcff.jpg", "images/\\udcff.parquet#0", "images/\\udcff.tar/\\udcff.jpg"]
    assert [name for name in names("images") if "udcff" in name][:3] == expected
    assert dict(loaded("images"))["images/\\udcff.jpg"] == f"images/{strange}.jpg"
    monkeypatch.setattr("sys.stdin", standard_input(b"images/\xff.jpg\n"))
    assert loaded("-") == [("images/\\udcff.jpg", f"images/{strange}.jpg")]


@pytest.mark.usefixtures("folder")
def test_files_patterns_and_urls() -> None:
    assert names("images/b.jpg", "images/*.jpg", "https://example.com/a.parquet") == [
        "images/b.jpg",
        "images/b.jpg",
        "https://example.com/a.parquet",
    ]
    assert sources.count(["images/b.jpg", "images/*.jpg", "https://example.com/a.parquet"]) == 3
    assert names("https://example.com/a.tar") == ["https://example.com/a.tar"]
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


@pytest.mark.parametrize(
    ("name", "mode", "enough"),
    [
        ("cut.tar", "w", 10 * 2 * 512 + 512),  # header and content of each member, and the block of zeros
        ("cut.tar.gz", "w:gz", None),
        ("cut.tar.bz2", "w:bz2", None),
        ("cut.tar.xz", "w:xz", None),
    ],
)
def test_a_tar_file_that_is_cut_off_anywhere(folder: Path, name: str, mode: str, enough: int | None) -> None:
    write_tar(folder / name, mode)
    whole, images = (folder / name).read_bytes(), loaded(name)
    for end in range(0, len(whole), 64 if enough else 1):
        (folder / name).write_bytes(whole[:end])
        if enough is not None and end >= enough:
            assert loaded(name) == images
        else:
            with pytest.raises(InvalidRequest, match=rf"^Cannot read {name}.*\S") as caught:
                loaded(name)
            assert "\n" not in str(caught.value)
            assert sources.count([name]) is None


@pytest.mark.parametrize("member", range(10))
@pytest.mark.parametrize("damage", [b"\xff", bytes(512)], ids=["a byte", "a hole"])
def test_a_tar_file_with_a_damaged_header(folder: Path, member: int, damage: bytes) -> None:
    write_tar(folder / "a.tar")
    with (folder / "a.tar").open("r+b") as file:
        file.seek(member * 2 * 512)
        file.write(damage)
    with pytest.raises(InvalidRequest, match=r"Cannot read a\.tar"):
        loaded("a.tar")


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
    with pytest.raises(InvalidRequest, match=r"Cannot read b\.parquet"):
        loaded("b.parquet")
    assert sources.count(["b.parquet"]) is None


def test_parquet_with_a_cell_that_cannot_be_read(folder: Path) -> None:
    lengths, content = pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")
    pq.write_table(pa.table({"path": pa.StringArray.from_buffers(2, lengths, content)}), folder / "a.parquet")
    first, second = sources.items(["a.parquet"])
    assert first.load() == "a"
    with pytest.raises(InvalidRequest, match=r"Cannot read a\.parquet#1: 'utf-8' codec"):
        second.load()


def test_a_list_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", standard_input(b"a.jpg\n\n b c .jpg \r\nhttp://b/c.jpg"))
    assert names("-") == ["a.jpg", " b c .jpg ", "http://b/c.jpg"]
    assert sources.count(["-"]) is None


@pytest.mark.usefixtures("folder")
def test_what_is_not_there() -> None:
    sources.check(["images", "images/b.jpg", "images/*.jpg", "-", "https://example.com/a.jpg"])
    with pytest.raises(InvalidRequest, match="There is no file or folder nowhere"):
        sources.check(["images", "nowhere"])
    with pytest.raises(InvalidRequest, match=r"No file is like \*\.gif"):
        sources.check(["*.gif"])
    with pytest.raises(InvalidRequest, match=r"Cannot read a+: .*File name too long"):
        sources.check(["a" * 300])


def test_names_in_a_shard_are_not_interned(folder: Path) -> None:
    """Python's table of interned strings grows with all that were ever in it."""
    write_tar(folder / "a.tar")
    for number, _ in enumerate(sources.items(["a.tar"])):
        name = f"{number:05}.jpg"
        assert sys.intern(name) is name  # which was not there
