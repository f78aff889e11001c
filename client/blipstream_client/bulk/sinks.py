# SPDX-License-Identifier: Apache-2.0
"""The outputs that rows are written to. A process can be killed at any moment, and the next goes on after the last row.

JSON lines and CSV are one file: an incomplete last row is cut off. Parquet is a folder of parts: each part is
complete. A job file beside the rows says what was asked for, so that no rows of another job are added.
"""

import csv
import io
import json
import os
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._info import ADAPTERS, changed_adapters, revision_of
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.rows import FLOAT, INT, VECTOR, Columns, Row

PARQUET_JOB = "_job.json"  # with an underscore, so that readers of Parquet skip it
PART_ROWS = 10_000
PART_SECONDS = 60.0  # after which even a small part is written
BLOCK = 1 << 20
NEW_FIELDS = {
    "defaults": "the server's defaults",
    "fixed": "the server's fixed options",
    "matching": "the server's retrieval checkpoint",
    "calibration": "the server's calibration",
}  # of a job, as people call them
LABELS = NEW_FIELDS | {ADAPTERS: "the server's adapters"}
QUOTE = "'"
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", QUOTE)  # a spreadsheet computes a cell that begins with one


class Sink(ABC):
    """An output. Only one process may hold its lock. Methods raise OSError if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: Columns = {}

    @property
    @abstractmethod
    def job_path(self) -> Path:
        """The path of the job file."""

    @abstractmethod
    def _is_foreign(self) -> bool:
        """Whether something else is already there."""

    @abstractmethod
    def _has_begun(self) -> bool:
        """Whether there are rows, or a file for them."""

    @abstractmethod
    def recover(self, needs: Sequence[str]) -> Iterator[Row]:
        """Remove incomplete rows, and return the complete ones, with the columns that are needed.

        Raises InvalidRequest if they are damaged.
        """

    @abstractmethod
    def write(self, row: Row) -> None:
        """Add a row. It may stay in memory for a while."""

    @abstractmethod
    def close(self) -> None:
        """Write all rows to disk."""

    def lock(self) -> io.IOBase:
        """Lock the output until the returned file is closed. Raises InvalidRequest if another process has it."""
        file = self.path.with_name(f".{self.path.name}.lock").open("ab")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            file.close()
            raise InvalidRequest(
                f"Another process is writing to {self.path}: wait for it, or use another --output"
            ) from exc
        except (ImportError, OSError):  # the system has no locks
            pass
        return file

    def begin(self, job: Mapping[str, Any], columns: Columns) -> None:
        """Start the job, or go on with it: its rows have these columns. Raises InvalidRequest if another was begun."""
        self.columns = columns
        job = json.loads(json.dumps(job))  # as it will be read again
        if self.job_path.exists() and not self._has_begun():  # the rows were deleted, or none was ever written
            self.job_path.unlink()
        try:
            begun = dict(json.loads(self.job_path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            self._start(job)
            return
        except (TypeError, ValueError) as exc:
            raise InvalidRequest(f"Cannot read {self.job_path}: remove it and {self.path} to begin anew") from exc
        for name in sorted(job.keys() | begun.keys()):
            if name in NEW_FIELDS and name not in begun:
                raise InvalidRequest(
                    f"{self.path} was begun by a client that did not record {NEW_FIELDS[name]} yet:"
                    " use another --output"
                )
            was, now = begun.get(name), job.get(name)
            same = revision_of if name in ("checkpoint", "matching") else _unchanged
            if any(changed_adapters(was, now)) if name == ADAPTERS else same(was) != same(now):
                raise self.differs(name, was, now)

    def differs(self, name: str, begun: Any, now: Any) -> InvalidRequest:  # noqa: ANN401
        """The error for a job that differs in this from the one that was begun."""
        if name == ADAPTERS:  # there may be thousands
            begun, now = changed_adapters(begun, now)
        was, now_is = (json.dumps(each, default=vars) for each in (begun, now))
        return InvalidRequest(
            f"{self.path} was begun with {LABELS.get(name, name)} {was}, not {now_is}:"
            " use the same to go on, or another --output"
        )

    def _start(self, job: Mapping[str, Any]) -> None:
        if self._is_foreign():
            raise InvalidRequest(f"{self.path} exists and was not begun by this command: use another --output")
        self.job_path.parent.mkdir(exist_ok=True)
        replace(self.job_path, json.dumps(job, indent=2).encode())


def _unchanged(value: object) -> object:
    return value


def open_sink(output: str) -> Sink:
    """The sink for the suffix of the file's name. Raises InvalidRequest, also if its folder does not exist."""
    path = Path(output)
    with translated(f"Cannot write to {output}"):
        if not path.parent.exists():
            make = shlex.join(["mkdir", "-p", str(path.parent)])
            raise InvalidRequest(f"There is no folder {path.parent}: make it by `{make}`, or use another --output")
    match path.suffix:
        case ".jsonl":
            return JsonLines(path)
        case ".csv":
            return Csv(path)
        case ".parquet":
            return Parquet(path)
        case _:
            raise InvalidRequest(f"Expected an output that ends in .parquet, .jsonl or .csv, got {output}")


def reading(output: str) -> str:
    """A command that shows the first rows of an output."""
    if output.endswith(".parquet"):
        code = "import sys, pyarrow.parquet as p; print(p.read_table(sys.argv[1]).slice(0, 3).to_pylist())"
        return shlex.join([sys.executable, "-c", code, output])
    return f"head -n 3 {shlex.quote(output)}"


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or not there."""
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


class Lines(Sink):
    """A text file of rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: io.TextIOWrapper | None = None

    @property
    def job_path(self) -> Path:
        """The path of the job file."""
        return self.path.with_name(f"{self.path.name}.job.json")

    def _is_foreign(self) -> bool:
        return self.path.exists()

    def _has_begun(self) -> bool:
        return self.path.exists()

    def recover(self, needs: Sequence[str]) -> Iterator[Row]:
        """Cut off an incomplete last row, and return the others."""
        self.path.touch()
        with self.path.open("r+b") as file:
            file.truncate(self._whole_length(file))
            if file.seek(0, os.SEEK_END) == 0:
                file.write(self._header.encode())
        damaged = translated(f"Cannot read {self.path} (use another --output)")
        with damaged, self.path.open("rb") as file:
            yield from self._read(file, needs)

    def write(self, row: Row) -> None:
        """Write a row at once."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8", newline="", buffering=1)
        self._file.write(self._format(row))

    def close(self) -> None:
        """Write all rows to disk."""
        if self._file is not None:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())

    @property
    def _header(self) -> str:
        return ""

    @abstractmethod
    def _whole_length(self, file: io.BufferedRandom) -> int:
        """The length of the file up to its last complete row."""

    @abstractmethod
    def _read(self, file: io.BufferedReader, needs: Sequence[str]) -> Iterator[Row]: ...

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

    def _read(self, file: io.BufferedReader, needs: Sequence[str]) -> Iterator[Row]:
        for number, line in enumerate(file, 1):
            with translated(f"Cannot read line {number} of {self.path} (cut the file off before it to go on)"):
                row = json.loads(line)
                found = {name: row[name] for name in needs}
            yield found

    def _format(self, row: Row) -> str:
        return json.dumps(row, ensure_ascii=False, default=_as_list) + "\n"


class Csv(Lines):
    """Comma-separated values with a header. What is unknown is empty.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP advises. So does text that
    begins with an apostrophe: a reader can always remove the first one.
    """

    @property
    def _header(self) -> str:
        return ",".join(self.columns) + "\r\n"

    def _whole_length(self, file: io.BufferedRandom) -> int:
        """A row ends at a newline outside of quotes. Inside, quotes come in pairs."""
        whole, position, quotes = 0, 0, 0
        for line in file:
            position += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0 and line.endswith(b"\r\n"):
                whole = position
        return whole

    def _read(self, file: io.BufferedReader, needs: Sequence[str]) -> Iterator[Row]:
        for row in csv.DictReader(map(bytes.decode, file)):
            yield {name: self._value(name, row[name]) for name in needs}

    def _value(self, name: str, cell: str) -> str | int | float | None:
        """What was written as this cell."""
        read = {INT: int, FLOAT: float}.get(self.columns[name], _without_quote)
        return read(cell) if cell else None

    def _format(self, row: Row) -> str:
        line = io.StringIO()
        csv.writer(line).writerow(map(_as_text, row.values()))
        return line.getvalue()


def _as_text(value: Any) -> Any:  # noqa: ANN401
    """The cell, in a form that no spreadsheet computes. A vector becomes JSON."""
    if isinstance(value, np.ndarray):
        return json.dumps(_as_list(value))
    return f"{QUOTE}{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def _as_list(vector: npt.NDArray[np.float32]) -> list[float]:
    """The numbers, with no more digits than tell them from their neighbours in f32."""
    return [float(str(number)) for number in vector]


def _without_quote(cell: str) -> str:
    return cell.removeprefix(QUOTE)


class Parquet(Sink):
    """A folder of Parquet files, which readers open as one table."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._arrow = pyarrow(f"Writing {path}")
        self._rows: list[Row] = []
        self._parts = 0
        self._oldest = 0.0

    @property
    def job_path(self) -> Path:
        """The path of the job file."""
        return self.path / PARQUET_JOB

    def _has_begun(self) -> bool:
        return any(self.path.glob("part-*.parquet"))

    def _is_foreign(self) -> bool:
        return self.path.exists() and not (self.path.is_dir() and not any(self.path.glob("[!.]*")))

    def recover(self, needs: Sequence[str]) -> Iterator[Row]:
        """Remove an incomplete part, and return the rows of the others. None of these may be missing."""
        for unfinished in self.path.glob(".*.tmp"):
            unfinished.unlink()
        for part in sorted(self.path.glob("part-*.parquet")):
            with translated(f"Cannot read {part} (remove it and all later parts to go on)"):
                number = int(part.stem.removeprefix("part-"))
                if number != self._parts + 1:
                    raise InvalidRequest(
                        f"{self._part(self._parts + 1)} is missing: put it back, or remove all later parts to go on"
                    )
                self._parts = number
                rows = self._arrow.parquet.read_table(part, columns=[*needs]).to_pylist()
            yield from rows

    def write(self, row: Row) -> None:
        """Add a row to the next part."""
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._oldest > PART_SECONDS:
            self._write_part()

    def close(self) -> None:
        """Write all rows to disk."""
        if self._rows:
            self._write_part()

    def _write_part(self) -> None:
        number = self._parts + 1
        part = io.BytesIO()
        schema = self._arrow.schema([(name, self._type(kind)) for name, kind in self.columns.items()])
        self._arrow.parquet.write_table(self._arrow.Table.from_pylist(self._rows, schema), part)
        replace(self._part(number), part.getvalue())
        self._parts, self._rows = number, []  # last, so that after Ctrl-C `close` writes the same part again

    def _type(self, kind: str) -> Any:  # noqa: ANN401
        return self._arrow.list_(self._arrow.float32()) if kind == VECTOR else self._arrow.type_for_alias(kind)

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:06}.parquet"


def is_result(folder: Path) -> bool:
    """Whether the folder is a Parquet output."""
    return folder.suffix == ".parquet" and (folder / PARQUET_JOB).exists()
