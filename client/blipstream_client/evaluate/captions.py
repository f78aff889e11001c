# SPDX-License-Identifier: Apache-2.0
"""Captions that exist already: what `blipstream bulk` writes, COCO's results, or an earlier table of scores."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._files import open_regular
from blipstream_client._text import excerpt, quoted
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.parquet import opened_parquet
from blipstream_client.bulk.rows import as_utf8
from blipstream_client.bulk.sinks import QUOTE
from blipstream_client.evaluate.annotations import Annotated

NAMES = ("name", "image", "image_id")  # of the column with images: the first one that a file has counts
BLOCK_ROWS = 10_000


class Captioned(NamedTuple):
    """The caption of an image."""

    image: int | str  # its name, or COCO's id of it
    caption: str | None  # None if it has none
    match: float | None = None  # the probability that they belong together, if somebody asked


def read_captions(path: str) -> Iterator[Captioned]:
    """All captions of a file, or of a folder that `blipstream bulk` wrote. Raises InvalidRequest."""
    shown = excerpt(as_utf8(path))
    with translated(f"Cannot read {shown}"):
        for row in _rows(path):
            name = next((each for each in NAMES if each in row), None)
            if name is None or "caption" not in row:
                raise InvalidRequest(
                    "Expected name and caption, as `blipstream bulk` writes them, or image_id and caption, as COCO's"
                    f" results have them, got {excerpt(', '.join(row)) or 'nothing'} in {shown}"
                )
            caption = row["caption"]
            yield Captioned(row[name], None if caption is None else " ".join(str(caption).split()), row.get("match"))


def _rows(path: str) -> Iterator[Mapping[str, Any]]:
    if Path(path).is_dir():
        for part in sorted(Path(path).glob("*.parquet")):
            yield from _parquet_rows(str(part))
        return
    with open_regular(path) as file:
        first = file.peek(4)[:4] if isinstance(file, io.BufferedReader) else b""
        if first == b"PAR1":
            yield from _parquet_rows(path)
        elif first[:1] == b"[":
            yield from map(_object, json.load(file))
        elif first[:1] == b"{":
            yield from (_object(json.loads(line)) for line in file if line.strip())
        else:
            with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
                for row in csv.DictReader(text):
                    yield {name: _cell(name, cell) for name, cell in row.items()}


def _cell(name: str, cell: str) -> str | float | None:
    """What `bulk` wrote as this cell. What is unknown is empty."""
    return float(cell) if name == "match" and cell else cell.removeprefix(QUOTE) or None


def _parquet_rows(path: str) -> Iterator[Mapping[str, Any]]:
    with opened_parquet(path) as file:
        columns = [each for each in (*NAMES, "caption", "match") if each in file.schema_arrow.names]
        for batch in file.iter_batches(BLOCK_ROWS, columns=columns, use_threads=False):
            yield from batch.to_pylist()


def _object(row: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if not isinstance(row, dict):
        raise InvalidRequest(f"Expected an object with image_id and caption, got {quoted(row)}")
    return row


class Index:
    """Finds the annotated image that a caption belongs to."""

    def __init__(self, annotated: Sequence[Annotated]) -> None:
        last_parts = Counter(map(_last_part, (each.image for each in annotated)))
        self._by_name = {_last_part(each.image): each for each in annotated if last_parts[_last_part(each.image)] == 1}
        self._by_name |= {each.image: each for each in annotated}
        self._by_id = {each.known_id: each for each in annotated}

    def find(self, image: int | str) -> Annotated | None:
        """The image by COCO's id, or by a path that ends in the path or the unique name that it has there."""
        if not isinstance(image, str):
            return self._by_id.get(image)
        parts = image.split("/")
        paths = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self._by_name[path] for path in paths if path in self._by_name), self._by_id.get(image))


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def joined(captions: Iterable[Captioned], index: Index) -> tuple[dict[str, Captioned], list[int | str]]:
    """What was read of each annotated image, and the names of others. Raises InvalidRequest if an image comes twice."""
    found: dict[str, Captioned] = {}
    others: list[int | str] = []
    for each in captions:
        annotated = index.find(each.image)
        if annotated is None:
            others.append(each.image)
        elif annotated.image in found:
            raise InvalidRequest(f"There are two captions of {quoted(annotated.image)}: keep one")
        else:
            found[annotated.image] = each
    return found, others
