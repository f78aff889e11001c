# SPDX-License-Identifier: Apache-2.0
"""Tar files: which members are images, and headers that a stranger has damaged on purpose."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blipstream_client import InvalidImage, InvalidRequest
from blipstream_client.bulk.items import LeftOut
from blipstream_client.bulk.tar import tar_items


def member(tar: tarfile.TarFile, name: str, content: bytes, **changes: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    member(tar, name, b"", type=kind, linkname=target)


def loaded(path: Path) -> tuple[list[tuple[str, bytes | str]], str]:
    """Names and contents of the items, and the files that were left out."""
    left_out = LeftOut()
    found = [(item.name.removeprefix(f"{path}/"), item.load()) for item in tar_items(str(path), left_out)]
    return found, str(left_out)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("a.tar")


@pytest.fixture(params=["w", "w:gz"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_images_are_known_by_their_first_bytes(path: Path, jpeg: bytes, mode: str) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name in ("a.jfif", "b", "c.HEIC", "d.jpg"):
            member(tar, name, jpeg * 100)
        for name in ("a.txt", "b.txt", "c", ".hidden"):
            member(tar, name, b"BMW is no bitmap")
        member(tar, "broken.jpg", b"words")
        member(tar, "empty.jfif", b"")
    assert loaded(path) == (
        [(name, jpeg * 100) for name in ("a.jfif", "b", "c.HEIC", "d.jpg")] + [("broken.jpg", b"words")],
        "4 files left out for not being JPEG, PNG, WebP, BMP, GIF or TIFF:"
        " 2 .txt (a.tar/a.txt), 1 without a suffix (a.tar/c), 1 .jfif (a.tar/empty.jfif)",
    )


def test_links_lead_to_members_of_the_tar_file(path: Path, jpeg: bytes, mode: str) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        link(tar, "early.jpg", "deep/a.jpg")
        member(tar, "deep/a.jpg", jpeg + b"a")
        member(tar, "deep/notes.txt", b"words")
        link(tar, "hard", "./deep/a.jpg", tarfile.LNKTYPE)
        link(tar, "deep/soft.jpg", "../b.jpg")
        link(tar, "deep/twice", "soft.jpg")
        member(tar, "b.jpg", jpeg + b"b")
        link(tar, "words", "deep/notes.txt")
        link(tar, "round", "about")
        link(tar, "about", "round")
        link(tar, "outside.jpg", "/etc/hostname")
        link(tar, "above.jpg", "../../etc/hostname")
    found, left_out = loaded(path)
    assert found == [
        ("deep/a.jpg", jpeg + b"a"),
        ("b.jpg", jpeg + b"b"),
        ("early.jpg", jpeg + b"a"),
        ("hard", jpeg + b"a"),
        ("deep/soft.jpg", jpeg + b"b"),
        ("deep/twice", jpeg + b"b"),
    ]
    assert "4 linked to no file (a.tar/" in left_out
    assert "1 .txt (a.tar/deep/notes.txt), 1 without a suffix (a.tar/words)" in left_out


def test_a_compressed_tar_file_is_read_once(path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeking back by one byte would decompress everything again."""
    with tarfile.open(path, "w:gz") as tar:
        for number in range(20):
            member(tar, f"{number}.jfif", jpeg + bytes(100_000))
    monkeypatch.setattr("_compression.DecompressReader._rewind", None)
    assert len(loaded(path)[0]) == 20


def test_large_members_fail_alone(path: Path, jpeg: bytes) -> None:
    """They are not read: the file does not have so many bytes."""
    with tarfile.open(path, "w") as tar:
        member(tar, "a.jpg", jpeg)
        sparse = tarfile.TarInfo("large.jpg")
        sparse.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.size": str(2**40),
            "GNU.sparse.map": "0,0",
        }
        tar.addfile(sparse)
        sparse.name, sparse.pax_headers = "small.jpg", sparse.pax_headers | {"GNU.sparse.size": "100"}
        tar.addfile(sparse)
        member(tar, "b.jpg", jpeg)
    a, large, small, b = tar_items(str(path), LeftOut())
    with pytest.raises(InvalidImage, match=r"Cannot read large\.jpg: it is larger than 32 MiB"):
        large.load()
    with pytest.raises(InvalidImage, match=r"Cannot read small\.jpg: expected a plain file, and it is stored with hol"):
        small.load()
    names = []
    for item in tar_items(str(path), LeftOut()):
        if item.name.endswith(("a.jpg", "b.jpg")):
            assert item.load() == jpeg
            names.append(item.name)
    assert names == [a.name, b.name]


def pax_header(file: io.BufferedIOBase, kind: bytes) -> None:
    """A header of 64 MiB."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 2**26
    file.write(info.tobuf() + bytes(2**26))


def old_sparse(file: io.BufferedIOBase) -> None:
    """A map of a sparse file's holes that is 64 MiB long."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[156:157], header[257:265] = tarfile.GNUTYPE_SPARSE, b"ustar  \0"
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    file.write(header + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 2**17)


def backwards(file: io.BufferedIOBase) -> None:
    """A member with a negative size, after which the same header would come for ever."""
    info = tarfile.TarInfo("a.jpg")
    info.size = -1024
    file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: pax_header(file, tarfile.XHDTYPE),
        lambda file: pax_header(file, tarfile.GNUTYPE_LONGNAME),
        old_sparse,
        backwards,
    ],
    ids=["pax", "long name", "sparse", "backwards"],
)
@pytest.mark.timeout(60)
def test_headers_that_ask_for_too_much(path: Path, write: Callable[[io.BufferedIOBase], None]) -> None:
    with gzip.open(path, "wb", 1) as file:
        write(file)
        file.write(bytes(1024))
    with pytest.raises(InvalidRequest, match=r"Cannot read .*a\.tar: .*damaged"):
        loaded(path)
