# SPDX-License-Identifier: Apache-2.0
"""The table of embeddings: a Parquet file, or a folder of them, as `blipstream embed` writes it."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._info import revision_of
from blipstream_client._text import LONGEST_SENTENCE, excerpt, quoted
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.parquet import opened_parquet
from blipstream_client.bulk.rows import as_utf8

COLUMNS = ("name", "embedding", "checkpoint", "hash", "error")  # that a search reads
BLOCK_ROWS = 1 << 14  # read at once: 16 MiB of 256 numbers each


class Block(NamedTuple):
    """Rows that have an embedding."""

    embeddings: npt.NDArray[np.float32]  # [B, D], each of length 1
    names: Any  # pyarrow's arrays [B] of text
    hashes: Any  # SHA-256 of the images' bytes


class Table:
    """A table that can be read any number of times, in bounded memory."""

    def __init__(self, path: str) -> None:
        """Raises InvalidRequest if it is no table of embeddings."""
        self.shown = excerpt(as_utf8(path))
        pyarrow(f"Reading {self.shown}")
        if path.endswith((".jsonl", ".csv")):
            raise InvalidRequest(
                f"Expected Parquet, got {self.shown}: `blipstream embed --output NAME.parquet` writes it"
            )
        with translated(f"Cannot read {self.shown}"):
            is_folder = Path(path).is_dir()
            self._parts = sorted(Path(path).glob("*.parquet")) if is_folder else [Path(path)]
        if not self._parts:
            raise InvalidRequest(f"{self.shown} is a folder without Parquet files: name what `blipstream embed` wrote")
        with opened_parquet(str(self._parts[0])) as file:
            self._check_columns(file.schema_arrow)

    def blocks(self, checkpoint: str | None, size: int) -> Iterator[Block]:
        """All rows with embeddings, of `size` numbers from this checkpoint, in turn.

        Raises InvalidRequest if there are others, or none at all.
        """
        rows, embedded, error = 0, 0, None
        for part in self._parts:
            with opened_parquet(str(part)) as file:
                self._check_columns(file.schema_arrow)
                for batch in file.iter_batches(BLOCK_ROWS, columns=[*COLUMNS], use_threads=False):
                    self._check_checkpoints(batch.column("checkpoint").unique().to_pylist(), checkpoint)
                    rows += batch.num_rows
                    if batch.column("embedding").null_count:
                        error = error or next(filter(None, batch.column("error").to_pylist()), None)
                        batch = batch.filter(batch.column("embedding").is_valid())
                    embedded += batch.num_rows
                    if batch.num_rows:
                        yield self._block(batch, size)
        if not rows:
            raise InvalidRequest(f"{self.shown} has no rows: embed images first")
        if not embedded:
            raise InvalidRequest(
                f"None of the {rows:,} rows of {self.shown} has an embedding: {excerpt(error, LONGEST_SENTENCE)}"
            )

    def _block(self, rows: Any, size: int) -> Block:  # noqa: ANN401
        column = rows.column("embedding")
        for length in import_module("pyarrow.compute").list_value_length(column).unique().to_pylist():
            if length != size:
                raise InvalidRequest(
                    f"{self.shown} has embeddings of {length:,} numbers, and the server's have {size:,}:"
                    " embed the images again with this server"
                )
        # numbers that are missing become NaN
        numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
        return Block(numbers, rows.column("name"), rows.column("hash"))

    def _check_columns(self, schema: Any) -> None:  # noqa: ANN401
        arrow = pyarrow(f"Reading {self.shown}")
        if missing := [name for name in COLUMNS if name not in schema.names]:
            raise InvalidRequest(
                f"Expected the columns {', '.join(COLUMNS)} in {self.shown}, got {excerpt(', '.join(schema.names))}"
                f" without {missing[0]}: name a table that `blipstream embed` wrote"
            )
        types = arrow.types
        for name in COLUMNS:
            kind = schema.field(name).type
            is_list = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
            is_right = (
                is_list and kind.value_type == arrow.float32()
                if name == "embedding"
                else types.is_string(kind) or types.is_large_string(kind)
            )
            if not is_right:
                expected = "lists of float32" if name == "embedding" else "text"
                raise InvalidRequest(
                    f"Expected {expected} in the column {name} of {self.shown}, got {excerpt(kind)}:"
                    " name a table that `blipstream embed` wrote"
                )

    def _check_checkpoints(self, found: list[str | None], wanted: str | None) -> None:
        for each in found:
            if revision_of(each) != revision_of(wanted):
                raise InvalidRequest(
                    f"{self.shown} has embeddings of the checkpoint {_shown(each)}, and the server has"
                    f" {_shown(wanted)}: ask a server that has the same, or embed the images again"
                )


def _shown(checkpoint: str | None) -> str:
    return "unknown" if checkpoint is None else quoted(checkpoint)
