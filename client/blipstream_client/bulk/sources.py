# SPDX-License-Identifier: Apache-2.0
"""What images there are: folders, globs, tar shards, Parquet files and lists, one image after the other.

The order is the same each time, since a run that goes on counts on it. Only names are ever held for a whole folder.
"""

import glob
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client.bulk.extras import pyarrow

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_SUFFIX = ".parquet"
STANDARD_INPUT = "-"
COLUMNS = ("image", "jpg", "bytes", "url", "image_url", "path")  # of a Parquet file, the first that it has
BATCH_ROWS = 64  # of a Parquet file, in memory at once


@dataclass(frozen=True)
class Item:
    """An image and its name. `load` gives its bytes, or the path or URL to read them from; call it at once."""

    name: str
    load: Callable[[], bytes | str]


def check(inputs: Sequence[str]) -> None:
    """Raises InvalidRequest where there is nothing."""
    for name in inputs:
        if name == STANDARD_INPUT or is_url(name) or Path(name).exists():
            continue
        if not glob.has_magic(name):
            raise InvalidRequest(f"There is no file or folder {name}")
        if not any(True for _ in _glob(name)):
            raise InvalidRequest(f"No file is like {name}")


def items(inputs: Sequence[str], column: str | None = None) -> Iterator[Item]:
    """All images. Raises InvalidRequest where a shard cannot be read."""
    for name in _names(inputs):
        if name.lower().endswith(TAR_SUFFIXES):
            yield from _tar(name)
        elif name.lower().endswith(PARQUET_SUFFIX) and not is_url(name):
            yield from _parquet(name, column)
        else:
            yield Item(name, lambda name=name: name)  # type: ignore[misc]


def count(inputs: Sequence[str]) -> int | None:
    """How many there are, if that can be known without reading them."""
    if STANDARD_INPUT in inputs:
        return None
    total = 0
    for name in _names(inputs):
        if name.lower().endswith(PARQUET_SUFFIX):
            total += pyarrow(f"Reading {name}").parquet.read_metadata(name).num_rows
        elif name.lower().endswith(".tar"):
            total += sum(1 for _ in _tar(name))
        elif name.lower().endswith(TAR_SUFFIXES):
            return None
        else:
            total += 1
    return total


def _names(inputs: Sequence[str]) -> Iterator[str]:
    """Files and URLs."""
    for name in inputs:
        if name == STANDARD_INPUT:
            yield from (line.strip() for line in sys.stdin if line.strip())
        elif Path(name).is_dir():
            yield from _folder(name)
        elif is_url(name) or Path(name).exists():
            yield name
        else:
            yield from (each for each in sorted(_glob(name)) if Path(each).is_file())


def _glob(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns


def _folder(folder: str) -> Iterator[str]:
    """What lies in a folder and below, if it looks like images or shards of them."""
    for current, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES or _is_shard(name):
                yield str(Path(current, name))


def _is_shard(name: str) -> bool:
    return name.lower().endswith((*TAR_SUFFIXES, PARQUET_SUFFIX))


def _tar(path: str) -> Iterator[Item]:
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                if member.isfile() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    yield Item(f"{path}/{member.name}", lambda member=member: _extract(tar, member))  # type: ignore[misc]
                tar.members = []  # type: ignore[attr-defined]  # else it remembers all of them
    except (OSError, tarfile.TarError, EOFError) as exc:
        raise InvalidRequest(f"Cannot read the tar file {path}: {exc}") from exc


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _parquet(path: str, column: str | None) -> Iterator[Item]:
    arrow = pyarrow(f"Reading {path}")
    try:
        with arrow.parquet.ParquetFile(path) as file:
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
    except (OSError, arrow.ArrowException) as exc:
        raise InvalidRequest(f"Cannot read the Parquet file {path}: {exc}") from exc


def _cell(value: Any) -> bytes | str:  # noqa: ANN401
    """Bytes, a path or a URL, or the struct of bytes and path that `datasets` writes."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, (bytes, str)) else b""
