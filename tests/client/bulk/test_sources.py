# SPDX-License-Identifier: Apache-2.0
import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from blipstream_client import InvalidRequest
from blipstream_client._images import FORMATS
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.items import SIGNATURE_BYTES, LeftOut, is_image
from blipstream_client.bulk.sources import Sources

pa = pyarrow("This test")
pq = pa.parquet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images at several depths, and other files."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "deep/er/d.jpeg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str) -> list[str]:
    return [item.name for item in Sources(inputs).items()]


def loaded(*inputs: str, column: str | None = None) -> list[tuple[str, bytes | str]]:
    return [(item.name, item.load()) for item in Sources(inputs, column, allow_local_paths=True).items()]


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
    assert Sources(["images"]).count() == 4
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
    found = Sources(["images"]).items()
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
    assert Sources(["images/b.jpg", "images/*.jpg", "https://example.com/a.parquet"]).count() == 3
    assert names("https://example.com/a.tar") == ["https://example.com/a.tar"]
    assert names("images/**/*.*e*") == ["images/deep/c.webp", "images/deep/er/d.jpeg"]


@pytest.mark.parametrize(("name", "mode"), [("shard.tar", "w"), ("shard.tar.gz", "w:gz"), ("shard.tgz", "w:gz")])
def test_tar_shards(folder: Path, name: str, mode: str) -> None:
    write_tar(folder / name, mode)
    expected = [(f"{name}/{number:05}.jpg", f"image {number}".encode()) for number in range(5)]
    assert loaded(name) == expected
    assert names(name) == [each for each, _ in expected]  # without reading them
    assert Sources([name]).count() == (5 if mode == "w" else None)


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
            assert Sources([name]).count() is None


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
    assert Sources(["a.parquet"]).count() == 3


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
    assert Sources(["b.parquet"]).count() is None


def test_a_list_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", standard_input(b"\xef\xbb\xbfa.jpg\n\n b c .jpg \r\nhttp://b/c.jpg"))
    assert names("-") == ["a.jpg", " b c .jpg ", "http://b/c.jpg"]
    assert Sources(["-"]).count() is None


@pytest.mark.usefixtures("folder")
def test_missing_files() -> None:
    Sources(["images", "images/b.jpg", "images/*.jpg", "-", "https://example.com/a.jpg"]).check()
    with pytest.raises(InvalidRequest, match="There is no file or folder nowhere"):
        Sources(["images", "nowhere"]).check()
    with pytest.raises(InvalidRequest, match=r"No file is like \*\.gif"):
        Sources(["*.gif"]).check()
    with pytest.raises(InvalidRequest, match=r"Cannot read a+\.\.\.a+: .*File name too long"):
        Sources(["a" * 300]).check()


def test_names_in_a_shard_are_not_interned(folder: Path) -> None:
    """Python's table of interned strings never shrinks."""
    write_tar(folder / "a.tar")
    for number, _ in enumerate(Sources(["a.tar"]).items()):
        name = f"{number:05}.jpg"
        assert sys.intern(name) is name  # so it was not there before


def test_images_are_known_by_their_first_bytes(folder: Path, jpeg: bytes) -> None:
    for name in ("a.jfif", "b.jpe", "c.HEIC", "deep/d", ".e", "f.heic", "g.txt"):
        (folder / "images" / name).write_bytes(jpeg if name[0] not in "fg" else b"BMW is no bitmap")
    (folder / "images" / "h.avif").touch()
    (folder / "images" / "i").symlink_to("nowhere")
    (folder / "images" / "j.dat").symlink_to("/dev/zero")
    sources = Sources(["images"])
    found = [item.name for item in sources.items()]
    assert [name for name in found if Path(name).name in (".e", "a.jfif", "b.jpe", "c.HEIC", "d")] == [
        *(f"images/{name}" for name in (".e", "a.jfif", "b.jpe", "c.HEIC")),
        "images/deep/d",
    ]
    assert len(found) == 4 + 5 == sources.count()
    assert str(sources.left_out) == (
        "6 files left out for not being JPEG, PNG, WebP, BMP, GIF or TIFF: 2 .txt (images/g.txt), 1 .heic"
        " (images/f.heic), 1 empty (images/h.avif), 1 linked to no file (images/i), 1 not regular (images/j.dat)"
    )


@pytest.mark.usefixtures("folder")
def test_macos_metadata_is_left_out(jpeg: bytes) -> None:
    found = names("images")
    beside = Path("images/__MACOSX")
    beside.mkdir()
    for path in (beside / "._a.jpg", beside / "b.jpg", Path("images/._c.jpg"), Path("images/._d.tar")):
        path.write_bytes(b"\0\5\x16\7 Mac OS X")
    Path("images/._true.jpg").write_bytes(jpeg)
    with tarfile.open("a.tar", "w") as tar:
        tar.add("images")
    assert names("images") == ["images/._true.jpg", *found]
    assert sorted(names("a.tar")) == [f"a.tar/{name}" for name in ("images/._true.jpg", *found)]


def test_all_formats_of_the_server_are_known(jpeg: bytes) -> None:
    """All files that PIL writes in the server's formats, and no others."""
    for kind in (*FORMATS, "MPO"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(jpeg)).save(buffer, kind, big_tiff=True)
        assert is_image(buffer.getvalue()[:SIGNATURE_BYTES]), kind
    for kind in ("AVIF", "ICO", "PPM", "TGA", "PDF", "JPEG2000", "ICNS"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(jpeg)).save(buffer, kind)
        assert not is_image(buffer.getvalue()[:SIGNATURE_BYTES]), kind


def test_the_number_of_kinds_left_out_is_bounded() -> None:
    left_out = LeftOut()
    for number in range(1000):
        left_out.add(f"a.{number}")
    left_out.add(f"a.{'x' * 1000}")
    assert str(left_out).startswith("1,001 files left out")
    assert "981 others (a.20)" in str(left_out)
    assert len(str(left_out)) < 1000


def test_links_are_followed_once(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    for name in ("x.jpg", "y.jpg"):
        (folder / "elsewhere" / name).touch()
    (folder / "elsewhere" / "back").symlink_to(folder / "images")
    (folder / "images" / "aside").symlink_to(folder / "elsewhere")
    (folder / "images" / "deep" / "again").symlink_to(folder / "elsewhere")
    (folder / "images" / "a-link-to-deep").symlink_to("deep")
    (folder / "images" / "round").symlink_to(".")
    (folder / "images" / "z.jpg").symlink_to("b.jpg")
    (folder / "linked").symlink_to("images")
    images = ["a.PNG", "b.jpg", "z.jpg", "deep/c.webp", "deep/er/d.jpeg", "aside/x.jpg", "aside/y.jpg"]
    assert names("images") == [f"images/{name}" for name in images]
    assert names("linked") == [f"linked/{name}" for name in images]


def test_a_list_may_have_any_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(folder / "shard.tar")
    (folder / "[b].jpg").touch()
    lines = ["images/deep", "shard.tar", "images/*.jpg", "[b].jpg", "*.gif", "-", "a" * 5000, "http://a/b.jpg"]
    monkeypatch.setattr("sys.stdin", standard_input("\n".join(lines).encode()))
    assert names("-") == [
        *("images/deep/c.webp", "images/deep/er/d.jpeg"),
        *(f"shard.tar/{number:05}.jpg" for number in range(5)),
        *("images/b.jpg", "[b].jpg", "*.gif", "-", "a" * 5000, "http://a/b.jpg"),
    ]


def test_standard_input_that_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/zero").open() as zeros:
        monkeypatch.setattr("sys.stdin", zeros)
        with pytest.raises(InvalidRequest, match="Expected a name a line on standard input, got a line of more than"):
            names("-")


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_shard_that_is_a_pipe(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    with pytest.raises(InvalidRequest, match=f"Cannot read {name}: expected a file, got a pipe"):
        names(name)


def test_the_type_of_a_column_is_checked_before_the_run(folder: Path) -> None:
    pq.write_table(pa.table({"image": [[1.0, 2.0]]}), folder / "a.parquet")
    for pattern in ("a.parquet", "*.parquet"):
        with pytest.raises(InvalidRequest, match=r"in the column image of a\.parquet, got list<element: double>"):
            Sources(["images", pattern]).check()
