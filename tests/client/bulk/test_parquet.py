# SPDX-License-Identifier: Apache-2.0
"""Parquet files: which columns and cells have images."""

from base64 import b64encode, encodebytes, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest

from blipstream_client import InvalidImage, InvalidRequest
from blipstream_client._files import MAX_BYTES
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.parquet import check_parquet, parquet_items

pa = pyarrow("This test")
pq = pa.parquet


def loaded(path: Path, allow_local_paths: bool = False) -> list[bytes | str | InvalidImage]:
    """The content of each row, or why it cannot be read."""
    found: list[bytes | str | InvalidImage] = []
    for item in parquet_items(str(path), None, allow_local_paths):
        try:
            found.append(item.load())
        except InvalidImage as exc:
            found.append(exc)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(
    "kind", ["binary", "large_binary", "binary_view", "string", "large_string", "string_view", "dictionary", "struct"]
)
def test_base64_and_data_urls(path: Path, jpeg: bytes, kind: str) -> None:
    """In columns of every type."""
    images = [jpeg + bytes(number) for number in range(6)]
    cells = [
        b64encode(images[0]),
        b64encode(images[1]).rstrip(b"="),
        encodebytes(images[2]),
        urlsafe_b64encode(images[3]),
        b"data:image/jpeg;base64," + b64encode(images[4]),
        b"DATA:image/jpeg;charset=x," + b"".join(b"%%%02x" % each for each in images[5]),
    ]
    texts = [each.decode() for each in cells]
    match kind:
        case "struct":
            column = pa.array([{"bytes": None, "path": each} for each in texts])
        case "dictionary":
            column = pa.array(texts).dictionary_encode()
        case _:
            column = pa.array(texts if "string" in kind else cells, getattr(pa, kind)())
    pq.write_table(pa.table({"image": column}), path)
    assert loaded(path) == images


def test_local_paths_need_permission(path: Path, jpeg: bytes) -> None:
    cells = ["/etc/hostname", "a.jpg", "http://a/b.jpg", "Qk05/abc", "", None]
    pq.write_table(pa.table({"path": cells}), path)
    assert loaded(path, allow_local_paths=True) == [*cells[:4], b"", b""]
    first, second, *others = loaded(path)
    assert str(first) == (
        "Expected an image, a URL, a data URL or base64 in the cell, got '/etc/hostname':"
        " if that is a path on this machine, --allow-local-paths permits it"
    )
    assert isinstance(second, InvalidImage)
    assert isinstance(others.pop(1), InvalidImage)
    assert others == ["http://a/b.jpg", b"", b""]
    pq.write_table(pa.table({"image": [{"bytes": jpeg, "path": "a.jpg"}, {"bytes": None, "path": "a.jpg"}]}), path)
    first, second = loaded(path)
    assert first == jpeg
    assert isinstance(second, InvalidImage)


def test_cells_that_cannot_be_read_fail_alone(path: Path, jpeg: bytes) -> None:
    cells = [b"\xff\xfe", b"data:image/png;base64,*", b64encode(jpeg) + b"*", b"x" * 18_000, jpeg]
    pq.write_table(pa.table({"image": cells}), path)
    odd, *wrong, long, whole = loaded(path)
    assert (odd, long, whole) == (cells[0], cells[3], jpeg)  # the server decides
    assert all(isinstance(each, InvalidImage) for each in wrong)
    text = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"path": pa.concat_arrays([text, pa.array(["x" * 18_000])])}), path)
    for error in loaded(path):
        assert isinstance(error, InvalidImage)
        assert len(str(error)) < 250


@pytest.mark.parametrize("dictionary", [True, False])
def test_nothing_larger_than_an_image(path: Path, jpeg: bytes, dictionary: bool) -> None:
    """It is not even read into memory if the metadata of its row group gives its size."""
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())]), use_dictionary=dictionary) as writer:
        writer.write_table(pa.table({"image": [jpeg]}))
        writer.write_table(pa.table({"image": [bytes(4 * MAX_BYTES)]}))
        writer.write_table(pa.table({"image": [jpeg, bytes(MAX_BYTES * 3 // 2 + 1)]}))
        writer.write_table(pa.table({"image": [jpeg]}))
    first, large, second, larger, last = loaded(path)
    assert first == second == last == jpeg
    for error in (large, larger):
        assert str(error) == "Cannot read the cell: it is larger than 32 MiB, which is the most that an image may have"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int64"),
        ([[1, 2], [3]], "list<element: int64>"),
        ([{"width": 3}], "struct<width: int64>"),
        ([{"bytes": 3}], "struct<bytes: int64>"),
        ([{f"field{number}": 1 for number in range(100)}], "struct<field0: int64, field1"),
    ],
)
def test_columns_without_images(path: Path, values: list[Any], kind: str) -> None:
    pq.write_table(pa.table({"image": values}), path)
    for _ in range(2):
        with pytest.raises(
            InvalidRequest, match=r"Expected images, .* in the column image of .*a\.parquet, got"
        ) as caught:
            check_parquet(str(path), None)
        assert kind in str(caught.value)
        assert len(str(caught.value)) < 300
