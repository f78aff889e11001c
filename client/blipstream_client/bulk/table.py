# SPDX-License-Identifier: Apache-2.0
"""CSV, TSV and JSON-lines files whose rows name an image, by a path or a URL, and have a text or several.

The paths start at the file's folder, and may lead into it without further ado: whoever names a table means what lies
beside it. Others need permission, as in Parquet files: whoever made the file could name any of the user's.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

from blipstream_client._exceptions import InvalidImage, InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client._files import open_regular
from blipstream_client._text import excerpt, quoted
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.items import Item, suffix
from blipstream_client.bulk.parquet import COLUMNS, TEXT_COLUMNS
from blipstream_client.bulk.rows import as_utf8

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = (*SEPARATORS, ".jsonl")
IMAGE_COLUMNS = (*COLUMNS, "file_name")  # the first one that a table has counts
LONGEST_LINE = 1 << 20  # bytes


def table_items(
    path: str, column: str | None, text_column: str | None, allow_local_paths: bool, flag: str
) -> Iterator[Item]:
    """An item for each row; `flag` names the column of its texts.

    Raises InvalidRequest if the file cannot be read, or lacks a column.
    """
    with translated(f"Cannot read {excerpt(as_utf8(path))}"):
        image_at = text_at = ""
        for number, row in enumerate(_rows(path)):
            if number == 0:
                image_at = _column(path, row, column, IMAGE_COLUMNS, "--column")
                text_at = _column(path, row, text_column, TEXT_COLUMNS, flag)
            texts = tuple(texts_in(row.get(text_at)))
            yield _item(path, number, row.get(image_at), texts, allow_local_paths)


def texts_in(value: Any) -> Iterator[str]:  # noqa: ANN401
    """The texts in a value of JSON: itself, or those of a list."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield as_utf8(each)


def _rows(path: str) -> Iterator[Mapping[str, Any]]:
    with open_regular(path) as file:
        if separator := SEPARATORS.get(suffix(path)):
            with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as lines:
                rows = iter(lambda: lines.readline(LONGEST_LINE), "")
                yield from csv.DictReader(rows, delimiter=separator, strict=True)
            return
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            with translated(f"Cannot read line {number} of {excerpt(as_utf8(path))}"):
                if len(line) == LONGEST_LINE:
                    raise InvalidRequest(f"It has more than {LONGEST_LINE:,} bytes")
                row = json.loads(line) if line.strip() else None
                if row is not None and not isinstance(row, dict):
                    raise InvalidRequest(f"Expected an object, got {quoted(row)}")
            if row is not None:
                yield row


def _column(path: str, row: Mapping[str, Any], given: str | None, usual: tuple[str, ...], flag: str) -> str:
    """The name of a column. Raises InvalidRequest if the first row lacks it."""
    found = given or next((each for each in usual if each in row), "")
    if found not in row:
        raise InvalidRequest(
            f"Expected a column {given or ' or '.join(usual)} in {excerpt(as_utf8(path))},"
            f" got {excerpt(', '.join(map(str, row)))}: name it with {flag}"
        )
    return found


def _item(table: str, number: int, place: Any, texts: tuple[str, ...], allow_local_paths: bool) -> Item:  # noqa: ANN401
    if not isinstance(place, str) or not place:
        return Item(
            f"{table}#{number}", partial(_refuse, f"Expected a path or a URL in the row, got {quoted(place)}"), texts
        )
    if is_url(place):
        return Item(place, lambda: place, texts)
    path = os.path.join(os.path.dirname(table), place)  # noqa: PTH118, PTH120  # Path raises for odd names
    leads_out = os.path.isabs(place) or f"{os.path.normpath(place)}/".startswith("../")  # noqa: PTH117
    if leads_out and not allow_local_paths:
        sentence = f"The path leads out of the table's folder: {quoted(place)}; --allow-local-paths permits it"
        return Item(path, partial(_refuse, sentence), texts)
    return Item(path, lambda: path, texts)


def _refuse(sentence: str) -> NoReturn:
    raise InvalidImage(sentence)
