# SPDX-License-Identifier: Apache-2.0
"""What images there are: folders, globs, tar shards, Parquet files and lists, one image after the other.

The order is the same each time, since a run that goes on counts on it. Only names are ever held for a whole folder.
"""

import glob
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.rows import spelled
from blipstream_client.bulk.sinks import is_result

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SHARD_SUFFIXES = (".parquet", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
STANDARD_INPUT = "-"
COLUMNS = ("image", "jpg", "bytes", "url", "image_url", "path")  # of a Parquet file, the first that it has
BATCH_ROWS = 64  # of a Parquet file, in memory at once
BLOCK = 1 << 20


@dataclass(frozen=True)
class Item:
    """An image, where it is and what reads it."""

    place: str
    read: Callable[[], bytes | str]

    @property
    def name(self) -> str:
        """As its row has it."""
        return spelled(self.place)

    def load(self) -> bytes | str:
        """Its bytes, or the path or URL to read them from; call it at once. Raises InvalidRequest."""
        with translated(f"Cannot read {self.name}"):
            return self.read()


def check(inputs: Sequence[str]) -> None:
    """Raises InvalidRequest where there is nothing."""
    for name in inputs:
        with translated(f"Cannot read {name}"):
            if name == STANDARD_INPUT or is_url(name) or Path(name).exists():
                continue
        if not glob.has_magic(name):
            raise InvalidRequest(f"There is no file or folder {name}")
        if not any(True for _ in _glob(name)):
            raise InvalidRequest(f"No file is like {name}")


def items(inputs: Sequence[str], column: str | None = None) -> Iterator[Item]:
    """All images. Raises InvalidRequest where a shard cannot be read."""
    for name in _names(inputs):
        match _shard_suffix(name):
            case "":
                yield Item(name, lambda name=name: name)  # type: ignore[misc]
            case ".parquet":
                yield from _parquet(name, column)
            case _:
                yield from _tar(name)


def count(inputs: Sequence[str]) -> int | None:
    """How many there are, if that can be known without reading them."""
    if STANDARD_INPUT in inputs:
        return None
    total = 0
    with suppress(InvalidRequest):  # which the run meets again, after the images before it
        for name in _names(inputs):
            match _shard_suffix(name):
                case "":
                    total += 1
                case ".parquet":
                    total += _parquet_rows(name)
                case ".tar":
                    total += sum(1 for _ in _tar(name))
                case _:
                    return None
        return total
    return None


def _names(inputs: Sequence[str]) -> Iterator[str]:
    """Files and URLs."""
    for name in inputs:
        with translated(f"Cannot read {name}"):
            if name == STANDARD_INPUT:
                lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
                yield from (os.fsdecode(line) for line in lines if line)
            elif is_url(name):
                yield name
            elif Path(name).is_dir():
                yield from _folder(name)
            elif Path(name).exists():
                yield name
            else:
                found = (each for each in sorted(_glob(name)) if Path(each).is_file())
                yield from (each for each in found if not is_result(Path(each).parent))


def _glob(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns


def _folder(folder: str) -> Iterator[str]:
    """What lies in a folder and below, if it looks like images or shards of them."""
    for current, folders, names in os.walk(folder, onerror=_fail):
        folders[:] = sorted(each for each in folders if not is_result(Path(current, each)))
        for name in sorted(names):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES or _shard_suffix(name):
                yield str(Path(current, name))


def _fail(error: OSError) -> NoReturn:
    raise error


def _shard_suffix(name: str) -> str:
    """What a tar shard or a Parquet file ends in; images and URLs have none."""
    return "" if is_url(name) else next((each for each in SHARD_SUFFIXES if name.lower().endswith(each)), "")


def _tar(path: str) -> Iterator[Item]:
    with translated(f"Cannot read {path}"), tarfile.open(path, tarinfo=Header) as tar:
        while (member := tar.next()) is not None:
            if member.isfile() and _suffix(member.name) in IMAGE_SUFFIXES:
                yield Item(f"{path}/{member.name}", lambda member=member: _extract(tar, member))  # type: ignore[misc]
            tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
        while block := tar.fileobj.read(BLOCK):
            if block.strip(b"\0"):
                raise tarfile.ReadError("something comes after its end")


def _suffix(name: str) -> str:
    """In lower case. A Path would intern each name, for which Python's table of such strings becomes twice as large."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


class Header(tarfile.TarInfo):
    """What begins a member. TarFile takes a damaged one for the end of the file, which is a block of zeros."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """The next one. Raises ReadError."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as exc:
            raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset} ({exc})") from exc


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _parquet(path: str, column: str | None) -> Iterator[Item]:
    with _parquet_file(path) as file:
        column = column or next((each for each in COLUMNS if each in file.schema_arrow.names), None)
        if column not in file.schema_arrow.names:
            raise InvalidRequest(
                f"Expected a column {column or ' or '.join(COLUMNS)} in {path},"
                f" got {', '.join(file.schema_arrow.names)}: name it with --column"
            )
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            for value in batch.column(0):
                yield Item(f"{path}#{number}", lambda value=value: _cell(value.as_py()))  # type: ignore[misc]
                number += 1


def _parquet_rows(path: str) -> int:
    with _parquet_file(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _parquet_file(path: str) -> Iterator[Any]:
    parquet = pyarrow(f"Reading {path}").parquet
    # opened here, since pyarrow takes no names but UTF-8
    with translated(f"Cannot read {path}"), Path(path).open("rb") as file, parquet.ParquetFile(file) as opened:
        yield opened


def _cell(value: Any) -> bytes | str:  # noqa: ANN401
    """Bytes, a path or a URL, or the struct of bytes and path that `datasets` writes."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, (bytes, str)) else b""
