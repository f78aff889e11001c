# SPDX-License-Identifier: Apache-2.0
"""Finds images in folders, globs, tar shards, Parquet files and lists, one after another.

The order is always the same, since a run that goes on relies on it. Of a whole folder, only names are held in memory.
"""

import codecs
import glob
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client._files import NotRegular, open_regular
from blipstream_client._text import excerpt
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.items import SIGNATURE_BYTES, Item, LeftOut, is_image, is_image_name, is_of_macos
from blipstream_client.bulk.parquet import check_parquet, parquet_items, parquet_rows
from blipstream_client.bulk.rows import as_utf8
from blipstream_client.bulk.sinks import is_result
from blipstream_client.bulk.tar import tar_items

SHARD_SUFFIXES = (".parquet", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
STANDARD_INPUT = "-"
LONGEST_LINE = 1 << 16  # bytes, of a list


@dataclass
class Sources:
    """The inputs, and the files left out so far because they are not images."""

    inputs: Sequence[str]
    column: str | None = None  # of Parquet files
    allow_local_paths: bool = False  # in Parquet files
    left_out: LeftOut = field(default_factory=LeftOut)
    tables: ClassVar[Sequence[str]] = ()  # names of files that say what a folder has

    @property
    def named(self) -> dict[str, Any]:
        """What the user has named, for the job file."""
        return {"images": list(self.inputs), "column": self.column}

    def check(self) -> None:
        """Raise InvalidRequest if an input does not exist, or its first table lacks a column."""
        for name in self.inputs:
            if name == STANDARD_INPUT or is_url(name):
                continue
            with translated(f"Cannot read {excerpt(as_utf8(name))}"):
                exists = Path(name).exists()
            if not (exists or glob.has_magic(name)):
                raise InvalidRequest(f"There is no file or folder {excerpt(as_utf8(name))}: mend the name")
            first = name if exists else next(_glob(name), None)
            if first is None:
                raise InvalidRequest(f"No file is like {excerpt(as_utf8(name))}: mend the pattern")
            if not Path(first).is_dir():
                self._check(first)

    def items(self) -> Iterator[Item]:
        """All images. Raises InvalidRequest if a shard cannot be read."""
        for name in self._names():
            yield from self._items(name)

    def find(self, names: AbstractSet[str]) -> Iterator[Item]:
        """Those of these names, each once."""
        wanted = set(names)
        for file in self._names():
            if not self._may_have(file, wanted):
                continue
            for item in self._items(file):
                if item.name in wanted:
                    wanted.remove(item.name)
                    yield item

    def count(self) -> int | None:
        """The number of images. None if it is unknown without reading them."""
        if STANDARD_INPUT in self.inputs:
            return None
        total = 0
        counting = replace(self, left_out=LeftOut())  # so that nothing is counted as left out twice
        with suppress(InvalidRequest):  # the run meets it again, after the images before it
            for name in counting._names():
                number = counting._count(name)
                if number is None:
                    return None
                total += number
            return total
        return None

    def _check(self, file: str) -> None:
        if shard_suffix(file) == ".parquet":
            check_parquet(file, self.column)

    def _items(self, file: str) -> Iterator[Item]:
        """The images of a file."""
        match shard_suffix(file):
            case "":
                yield Item(file, lambda: file)
            case ".parquet":
                yield from parquet_items(file, self.column, self.allow_local_paths)
            case _:
                yield from tar_items(file, self.left_out)

    def _may_have(self, file: str, names: AbstractSet[str]) -> bool:
        """Whether items of these names may be the file's."""
        shown = as_utf8(file)
        return any(name.startswith(shown) for name in names) if shard_suffix(file) else shown in names

    def _count(self, file: str) -> int | None:
        """The number of a file's images. None if it is unknown without reading them."""
        match shard_suffix(file):
            case "":
                return 1
            case ".parquet":
                return parquet_rows(file)
            case ".tar":
                return sum(1 for _ in tar_items(file, self.left_out))
            case _:
                return None

    def _names(self) -> Iterator[str]:
        """The names of all files, and all URLs."""
        for name in self.inputs:
            if name == STANDARD_INPUT:
                for line in _lines():
                    yield from self._named(line)
            else:
                yield from self._named(name)

    def _named(self, name: str) -> Iterator[str]:
        """The files that a name stands for. The name itself if there are none."""
        with translated(f"Cannot read {excerpt(as_utf8(name))}"):
            if is_url(name) or os.path.isfile(name):  # noqa: PTH113  # Path raises for odd names
                yield name
            elif os.path.isdir(name):  # noqa: PTH112
                yield from self._folder(name)
            else:
                found = [] if os.path.exists(name) else sorted(filter(os.path.isfile, _glob(name)))  # noqa: PTH110
                yield from (each for each in found if not is_result(Path(each).parent))
                if not found:
                    yield name

    def _folder(self, folder: str) -> Iterator[str]:
        """The images and shards in a folder and below. Links are followed, and no folder is read twice."""
        seen = set()
        waiting = deque([folder])
        while waiting:
            for current, folders, names in os.walk(waiting.popleft(), onerror=_fail):
                status = os.stat(current)  # noqa: PTH116
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                if table := next((name for name in self.tables if name in names), None):
                    folders.clear()
                    yield os.path.join(current, table)  # noqa: PTH118
                    continue
                folders[:] = sorted(each for each in folders if not is_result(Path(current, each)))
                # linked folders last, so that an image found twice has its name without the link
                waiting += [path for each in folders if os.path.islink(path := os.path.join(current, each))]  # noqa: PTH114, PTH118
                for path in (os.path.join(current, name) for name in sorted(names)):  # noqa: PTH118
                    is_shard = shard_suffix(path) and not is_of_macos(path)
                    if is_image_name(path) or is_shard or self._is_image(path):
                        yield path

    def _is_image(self, path: str) -> bool:
        """Whether the file's first bytes are an image's. Counts it as left out if not."""
        kind = ""
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size == 0:  # so are all files in /proc, where reading may block
                    kind = "empty"
                elif is_image(file.read(SIGNATURE_BYTES) or b""):  # None if reading would block
                    return True
        except NotRegular:
            kind = "not regular"
        except FileNotFoundError:
            kind = "linked to no file"
        except OSError:
            kind = "unreadable"
        self.left_out.add(path, kind)
        return False


def _lines() -> Iterator[str]:
    """The names on standard input, one on each line. Raises InvalidRequest."""
    with translated("Cannot read the list on standard input"):
        mark = codecs.BOM_UTF8  # some editors write it before the first line
        while line := sys.stdin.buffer.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise InvalidRequest(
                    f"Expected a name a line on standard input, got a line of more than {LONGEST_LINE:,} bytes"
                )
            if name := line.removeprefix(mark).rstrip(b"\r\n"):
                yield os.fsdecode(name)
            mark = b""


def _glob(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns


def _fail(error: OSError) -> NoReturn:
    raise error


def shard_suffix(name: str) -> str:
    """The suffix of a tar shard or Parquet file. "" for an image or a URL."""
    return "" if is_url(name) else next((each for each in SHARD_SUFFIXES if name.lower().endswith(each)), "")
