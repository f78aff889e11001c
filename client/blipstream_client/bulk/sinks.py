# SPDX-License-Identifier: Apache-2.0
"""Where rows go. Each sink can be left at any moment, as a killed process does, and go on after its last whole row.

JSON lines and CSV are one file, whose half-written last row is cut off. Parquet is a folder of parts, each of which is
there in full or not at all. Beside them lies what the rows were asked for with, so that nothing else is added to them.
"""

import csv
import io
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._info import revision_of
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.rows import COLUMNS, Row

PARQUET_JOB = "_job.json"  # readers skip names that begin so
PART_ROWS = 10_000
PART_SECONDS = 60.0  # after which a part is written however small it is
BLOCK = 1 << 20
QUOTE = "'"
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", QUOTE)  # what a cell must not begin with, lest it be computed

Written = tuple[str, bool]  # the name of a row, and whether it has a caption


class Sink(ABC):
    """A place for rows, of which only one process may hold the lock. Raises OSError if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def job_path(self) -> Path:
        """Where it is kept what the rows were asked for with."""

    @abstractmethod
    def _is_foreign(self) -> bool:
        """Whether there is something already, where nothing was begun."""

    @abstractmethod
    def _has_begun(self) -> bool:
        """Whether there are rows, or a file for them."""

    @abstractmethod
    def recover(self) -> Iterator[Written]:
        """Drop what is half-written, and give the rows that are there. Raises InvalidRequest if they are damaged."""

    @abstractmethod
    def write(self, row: Row) -> None:
        """Add a row; it may lie in memory for a while."""

    @abstractmethod
    def close(self) -> None:
        """Have all rows on disk."""

    def lock(self) -> io.IOBase:
        """Hold it for this process alone until what is returned is closed. Raises InvalidRequest."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.with_name(f".{self.path.name}.lock").open("ab")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            file.close()
            raise InvalidRequest(
                f"Another process is writing to {self.path}: wait for it, or use another --output"
            ) from exc
        except (ImportError, OSError):  # where there are no locks, care is up to the user
            pass
        return file

    def begin(self, job: Mapping[str, Any]) -> None:
        """Start, or go on with the same job. Raises InvalidRequest if it is another."""
        if self.job_path.exists() and not self._has_begun():  # rows were deleted, or there never was one
            self.job_path.unlink()
        try:
            begun = dict(json.loads(self.job_path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            self._start(job)
            return
        except (TypeError, ValueError) as exc:
            raise InvalidRequest(f"Cannot read {self.job_path}: remove it and {self.path} to begin anew") from exc
        for name in job.keys() | begun.keys():
            same = revision_of if name == "checkpoint" else _unchanged
            if same(begun.get(name)) != same(job.get(name)):
                raise self.differs(name, begun.get(name), job.get(name))

    def differs(self, name: str, begun: object, now: object) -> InvalidRequest:
        """The error for a job of which this has changed."""
        return InvalidRequest(
            f"{self.path} was begun with {name} {json.dumps(begun)}, not {json.dumps(now)}:"
            " use the same to go on, or another --output"
        )

    def _start(self, job: Mapping[str, Any]) -> None:
        if self._is_foreign():
            raise InvalidRequest(f"{self.path} exists and was not begun by this command: use another --output")
        self.job_path.parent.mkdir(parents=True, exist_ok=True)
        replace(self.job_path, json.dumps(job, indent=2).encode())


def _unchanged(value: object) -> object:
    return value


def open_sink(output: str) -> Sink:
    """The sink that the file's name says. Raises InvalidRequest."""
    path = Path(output)
    match path.suffix:
        case ".jsonl":
            return JsonLines(path)
        case ".csv":
            return Csv(path)
        case ".parquet":
            return Parquet(path)
        case _:
            raise InvalidRequest(f"Expected an output that ends in .parquet, .jsonl or .csv, got {output}")


def replace(path: Path, content: bytes) -> None:
    """Have a file with this content at the path, in full or not at all."""
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


class Lines(Sink):
    """A text file of rows."""

    header = ""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: io.TextIOWrapper | None = None

    @property
    def job_path(self) -> Path:
        """Where it is kept what the rows were asked for with."""
        return self.path.with_name(f"{self.path.name}.job.json")

    def _is_foreign(self) -> bool:
        return self.path.exists()

    def _has_begun(self) -> bool:
        return self.path.exists()

    def recover(self) -> Iterator[Written]:
        """Cut off what is half-written, and give the rows that are there."""
        self.path.touch()
        with self.path.open("r+b") as file:
            file.truncate(self._whole_length(file))
            if file.seek(0, os.SEEK_END) == 0:
                file.write(self.header.encode())
        damaged = translated(f"Cannot read {self.path} (use another --output)")
        with damaged, self.path.open("rb") as file:
            yield from self._read(file)

    def write(self, row: Row) -> None:
        """Add a row at once."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8", newline="", buffering=1)
        self._file.write(self._format(row))

    def close(self) -> None:
        """Have all rows on disk."""
        if self._file is not None:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())

    @abstractmethod
    def _whole_length(self, file: io.BufferedRandom) -> int:
        """Up to where the file has whole rows."""

    @abstractmethod
    def _read(self, file: io.BufferedReader) -> Iterator[Written]: ...

    @abstractmethod
    def _format(self, row: Row) -> str: ...


class JsonLines(Lines):
    """One JSON object a line."""

    def _whole_length(self, file: io.BufferedRandom) -> int:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def _read(self, file: io.BufferedReader) -> Iterator[Written]:
        for number, line in enumerate(file, 1):
            with translated(f"Cannot read line {number} of {self.path} (cut the file off before it to go on)"):
                row = json.loads(line)
                written = row["name"], row["error"] is None
            yield written

    def _format(self, row: Row) -> str:
        return json.dumps(asdict(row), ensure_ascii=False) + "\n"


class Csv(Lines):
    """Comma-separated values with a header; what is unknown is empty.

    Text that a spreadsheet would take for a formula begins with an apostrophe, as OWASP advises, and so does text that
    begins with one itself: it is always the first apostrophe that has to go.
    """

    header = ",".join(COLUMNS) + "\r\n"

    def _whole_length(self, file: io.BufferedRandom) -> int:
        """A row ends at a newline outside of quotes; inside, quotes come in pairs."""
        whole, position, quotes = 0, 0, 0
        for line in file:
            position += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0 and line.endswith(b"\r\n"):
                whole = position
        return whole

    def _read(self, file: io.BufferedReader) -> Iterator[Written]:
        for row in csv.DictReader(map(bytes.decode, file)):
            yield row["name"].removeprefix(QUOTE), not row["error"]

    def _format(self, row: Row) -> str:
        line = io.StringIO()
        csv.writer(line).writerow(map(_as_text, asdict(row).values()))
        return line.getvalue()


def _as_text(value: Any) -> Any:  # noqa: ANN401
    """The cell, so that no spreadsheet computes it."""
    return f"{QUOTE}{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


class Parquet(Sink):
    """A folder of Parquet files, which readers take for one table."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._arrow = pyarrow(f"Writing {path}")
        text, number = self._arrow.string(), self._arrow.int32()
        kinds = {"score": self._arrow.float32(), "width": number, "height": number}
        self._schema = self._arrow.schema([(name, kinds.get(name, text)) for name in COLUMNS])
        self._rows: list[dict[str, Any]] = []
        self._parts = 0
        self._oldest = 0.0

    @property
    def job_path(self) -> Path:
        """Where it is kept what the rows were asked for with."""
        return self.path / PARQUET_JOB

    def _has_begun(self) -> bool:
        return any(self.path.glob("part-*.parquet"))

    def _is_foreign(self) -> bool:
        return self.path.exists() and not (self.path.is_dir() and not any(self.path.glob("[!.]*")))

    def recover(self) -> Iterator[Written]:
        """Drop a part that is half-written, and give the rows that are there."""
        for unfinished in self.path.glob(".*.tmp"):
            unfinished.unlink()
        for part in sorted(self.path.glob("part-*.parquet")):
            with translated(f"Cannot read {part} (remove it and all later parts to go on)"):
                self._parts = int(part.stem.removeprefix("part-"))
                table = self._arrow.parquet.read_table(part, columns=["name", "error"])
                names, errors = (column.to_pylist() for column in table.columns)
            for name, error in zip(names, errors, strict=True):
                yield name, error is None

    def write(self, row: Row) -> None:
        """Add a row to the next part."""
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(asdict(row))
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._oldest > PART_SECONDS:
            self._write_part()

    def close(self) -> None:
        """Have all rows on disk."""
        if self._rows:
            self._write_part()

    def _write_part(self) -> None:
        number = self._parts + 1
        part = io.BytesIO()
        self._arrow.parquet.write_table(self._arrow.Table.from_pylist(self._rows, self._schema), part)
        replace(self.path / f"part-{number:06}.parquet", part.getvalue())
        self._parts, self._rows = number, []  # last: after Ctrl-C, `close` writes the same part again


def is_result(folder: Path) -> bool:
    """Whether it is a folder of parts."""
    return folder.suffix == ".parquet" and (folder / PARQUET_JOB).exists()
