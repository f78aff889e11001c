# SPDX-License-Identifier: Apache-2.0
"""The file of pairs: an image, a text, and whether they belong together."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from blipstream.errors import InvalidInput

COLUMNS = ("image", "text", "label")
LABELS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
SEPARATORS = {";": "semicolons", "\t": "tabs"}  # that are not ours
FEWEST, FEWEST_OF_A_LABEL = 20, 5  # pairs; of a label, one for each fold


class Pair(NamedTuple):
    """One line of the file."""

    place: str  # the file and the line, for messages
    image: Path
    text: str
    label: bool  # whether text and image belong together


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of a CSV file, or of a JSON Lines file if its name ends in .jsonl.

    Paths of images are relative to the file. Raises InvalidInput if the file cannot be used as it is.
    """
    rows = _json_rows if file.suffix == ".jsonl" else _csv_rows
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            pairs = [_pair(row, f"{file}, line {line}", file.parent) for line, row in rows(lines, file)]
    except OSError as exc:
        raise InvalidInput(f"{file} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{file} must be UTF-8, and is not: save it as UTF-8") from exc
    count = Counter(pair.label for pair in pairs)
    if len(pairs) < FEWEST or min(count[label] for label in (False, True)) < FEWEST_OF_A_LABEL:
        raise InvalidInput(
            f"{file} has {count[True]} pairs with label 1 and {count[False]} with label 0: label at least {FEWEST}, "
            f"and {FEWEST_OF_A_LABEL} of each"
        )
    return pairs


def _csv_rows(lines: Iterable[str], file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines)
    try:
        found = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        for separator, name in SEPARATORS.items():
            if len(found) == 1 and separator in found[0]:
                raise InvalidInput(f"{file} has {name} between its columns: save it with commas")
        if missing := [column for column in COLUMNS if column not in found]:
            raise InvalidInput(
                f"{file} must have the columns {', '.join(COLUMNS)} in its first line, and has no {missing[0]}: "
                f"it has {', '.join(found) or 'nothing'}"
            )
        for row in reader:
            if any(row.get(None, ())):  # what has no column
                raise InvalidInput(
                    f"{file}, line {reader.line_num} has more values than there are columns: put a text that has "
                    'commas in quotes, "like, this"'
                )
            yield reader.line_num, row
    except csv.Error as exc:
        raise InvalidInput(f"{file}, line {reader.line_num} is not CSV: {exc}") from exc


def _json_rows(lines: Iterable[str], file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise InvalidInput(f"{file}, line {number} is not JSON: {getattr(exc, 'msg', exc)}") from exc
        if not isinstance(row, dict) or not row.keys() >= set(COLUMNS):
            raise InvalidInput(f"{file}, line {number} must be an object with {', '.join(COLUMNS)}")
        yield number, row


def _pair(row: Mapping[str, Any], place: str, folder: Path) -> Pair:
    image, text, label = (row[column] for column in COLUMNS)
    for name, value in (("image", image), ("text", text)):
        if not isinstance(value, str | None):
            raise InvalidInput(f"{place} must have a string as its {name}, not {json.dumps(value)}")
    if not (image and text):
        raise InvalidInput(f"{place} must have an image and a text, and one is missing: add it, or remove the line")
    known = LABELS.get(str(label).strip().lower())
    if known is None:
        found = "no label" if label in (None, "") else f"the label {label!r}"
        raise InvalidInput(f"{place} has {found}: write 1 if image and text belong together, else 0")
    if "://" in image:
        raise InvalidInput(f"{place}: {image} is a URL, and URLs are not fetched: download it, and give its path")
    path = folder / image
    if not path.is_file():
        if path.exists():
            raise InvalidInput(f"{place}: {path} is no file: give the path of an image")
        raise InvalidInput(f"{place}: there is no image {path}; paths are relative to the file's folder")
    return Pair(place, path, text, known)
