# SPDX-License-Identifier: Apache-2.0
"""Finds images and their texts, in the same places as `sources` finds images, and in CSV and JSON-lines tables."""

import json
import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client._files import open_regular
from blipstream_client._text import excerpt
from blipstream_client.bulk.items import Item, LeftOut, suffix
from blipstream_client.bulk.parquet import TEXT_COLUMNS, has_text_in_each_row, parquet_pairs, parquet_rows
from blipstream_client.bulk.rows import as_utf8
from blipstream_client.bulk.sources import Sources, shard_suffix
from blipstream_client.bulk.table import TABLE_SUFFIXES, table_items, texts_in
from blipstream_client.bulk.tar import MOST_TEXT, TEXT_SUFFIXES, tar_pairs


@dataclass
class PairSources(Sources):
    """The inputs, and the files left out so far because they belong to no pair."""

    left_out: LeftOut = field(default_factory=lambda: LeftOut("the image or the text of a pair"))
    tables: ClassVar = ("metadata.jsonl", "metadata.csv")  # as `datasets` has them
    flag: ClassVar = "--text-column"
    text_column: str | None = None

    @property
    def named(self) -> dict[str, Any]:
        """What the user has named, for the job file."""
        return super().named | {"text_column": self.text_column}

    def _check(self, file: str) -> None:
        if suffix(file) in TABLE_SUFFIXES:
            next(self._items(file), None)
        elif shard_suffix(file) == ".parquet":
            has_text_in_each_row(file, self.column, self.text_column, self.flag)

    def _items(self, file: str) -> Iterator[Item]:
        if _is_table(file):
            yield from table_items(file, self.column, self.text_column, self.allow_local_paths, self.flag)
            return
        match shard_suffix(file):
            case "":
                yield Item(file, lambda: file, _text_beside(file))
            case ".parquet":
                yield from parquet_pairs(file, self.column, self.text_column, self.allow_local_paths, self.flag)
            case _:
                yield from tar_pairs(file, partial(_texts_of, self.text_column), self.left_out)

    def _may_have(self, file: str, names: AbstractSet[str]) -> bool:
        return _is_table(file) or super()._may_have(file, names)

    def _count(self, file: str) -> int | None:
        match shard_suffix(file):
            case "" if not _is_table(file):
                return 1
            case ".parquet":
                return (
                    parquet_rows(file) if has_text_in_each_row(file, self.column, self.text_column, self.flag) else None
                )
            case "" | ".tar":
                return sum(item.rows for item in self._items(file))
            case _:
                return None

    def _is_image(self, path: str) -> bool:
        return suffix(path) not in TEXT_SUFFIXES and super()._is_image(path)


@dataclass
class AdapterSources(PairSources):
    """Tables of images, whose texts are the adapters to caption them with."""

    left_out: LeftOut = field(default_factory=LeftOut)
    flag: ClassVar = "--adapter-column"

    @property
    def named(self) -> dict[str, Any]:
        """What the user has named, for the job file."""
        named = super().named
        return {"adapter_column": named.pop("text_column"), **named}

    def _check(self, file: str) -> None:
        self._check_is_table(file)
        super()._check(file)

    def _items(self, file: str) -> Iterator[Item]:
        self._check_is_table(file)
        yield from super()._items(file)

    def _check_is_table(self, file: str) -> None:
        if not (_is_table(file) or shard_suffix(file) == ".parquet"):
            raise InvalidRequest(
                f"{self.flag} is for tables, and {excerpt(as_utf8(file))} is none: give Parquet, CSV or JSON lines"
            )


def _is_table(name: str) -> bool:
    return suffix(name) in TABLE_SUFFIXES and not is_url(name)


def _text_beside(image: str) -> tuple[str, ...]:
    """The text in the file of the same name that ends in .txt. Empty if there is none."""
    try:
        with open_regular(f"{os.path.splitext(image)[0]}.txt") as file:  # noqa: PTH122  # Path raises for odd names
            return _texts_of(None, ".txt", file.read(MOST_TEXT))
    except (OSError, ValueError):
        return ()


def _texts_of(column: str | None, kind: str, content: bytes) -> tuple[str, ...]:
    """The texts in a file that lies beside an image: all of a .txt file, or what a .json file has in the column."""
    if kind == ".txt":
        text = content.decode(errors="replace").strip()
        return (text,) if text else ()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(value, dict):
        return ()
    found = column or next((each for each in TEXT_COLUMNS if each in value), "")
    return tuple(texts_in(value.get(found)))
