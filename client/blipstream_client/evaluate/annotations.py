# SPDX-License-Identifier: Apache-2.0
"""Images and their references, in the layouts of COCO, NoCaps, Karpathy, BLIP's authors and Flickr30k."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blipstream_client._exceptions import InvalidRequest
from blipstream_client._files import open_regular
from blipstream_client._text import excerpt, quoted
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.rows import as_utf8

EXPECTED = (
    "Expected JSON as COCO, NoCaps, Karpathy or BLIP's authors have it, or Flickr30k's .token or CSV file,"
    " with captions of images"
)
TOKEN_LINE = re.compile(r"(.+)#\d+\t(.*)")  # of Flickr30k: 1000092795.jpg#0, a tab, the caption
IMAGE_COLUMNS = ("image", "image_name", "filename", "file_name")  # of CSV: the first one that a file has counts
CAPTION_COLUMNS = ("caption", "comment", "raw")
KINDS = {str: "text", list: "a list", int | str: "text or a number", str | list: "text or a list"}
TEST = "test"  # the split that papers report


@dataclass(frozen=True)
class Annotated:
    """An image and what people have said of it."""

    image: str  # its path, as the annotations have it
    references: tuple[str, ...]
    id: int | str | None = None  # COCO's
    domain: str = ""  # of NoCaps
    split: str = ""

    @property
    def known_id(self) -> int | str | None:
        """COCO's id, which is also the number at the end of a file's name."""
        number = re.search(r"(\d+)\.\w+$", self.image)
        return self.id if self.id is not None else number and int(number[1])


def read_annotations(path: str, split: str | None) -> list[Annotated]:
    """All images of a split. Without one given, it is the test split if the file has splits, and else all of it.

    Raises InvalidRequest if the file has another layout, or no such split.
    """
    shown = excerpt(as_utf8(path))
    with translated(f"Cannot read {shown}"):
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
        found = [*_parsed(text)]
    if not found:
        raise InvalidRequest(f"{EXPECTED}; {shown} has none")
    if twice := [image for image, count in Counter(each.image for each in found).items() if count > 1]:
        raise InvalidRequest(f"{shown} has the image {quoted(twice[0])} twice: remove one of its entries")
    chosen = _of_split(found, split, shown)
    if not any(each.references for each in chosen):
        raise InvalidRequest(f"{shown} has no caption of any of its {len(chosen):,} images: name a file with captions")
    return chosen


def _of_split(found: list[Annotated], split: str | None, shown: str) -> list[Annotated]:
    splits = {each.split: None for each in found}
    if [*splits] == [""]:
        if split is not None:
            raise InvalidRequest(f"{shown} has no splits: leave out --split")
        return found
    wanted = split or TEST
    if wanted not in splits:
        raise InvalidRequest(f"There is no split {quoted(wanted)} in {shown}, which has {', '.join(splits)}")
    return [each for each in found if each.split == wanted]


def _parsed(text: str) -> Iterator[Annotated]:
    if not text.lstrip().startswith(("{", "[")):
        yield from _from_lines(text)
        return
    match json.loads(text, object_hook=_without_tokens):
        case {"images": [{"sentences": _}, *_] as images}:
            yield from map(_karpathy, images)
        case {"images": [*images], "annotations": [*annotations]}:
            yield from _coco(images, annotations)
        case [{"image": _, "caption": _}, *_] as entries:
            yield from _grouped((_get(each, "image", str), _texts(each, "caption"), "") for each in entries)
        case dict() as found:
            raise InvalidRequest(f"{EXPECTED}; got an object with {excerpt(', '.join(found)) or 'nothing'}")
        case found:
            raise InvalidRequest(f"{EXPECTED}; got {quoted(found)}")


def _without_tokens(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry without Karpathy's tokens, which take most of the memory."""
    entry.pop("tokens", None)
    return entry


def _coco(images: Sequence[Any], annotations: Sequence[Any]) -> Iterator[Annotated]:
    texts: dict[int | str, list[str]] = {}
    for each in annotations:
        texts.setdefault(_get(each, "image_id", int | str), []).append(_get(each, "caption", str))
    for each in images:
        number = _get(each, "id", int | str)
        # the authors' files have no names: all their images for tests are of val2014
        name = each.get("file_name") or (f"COCO_val2014_{number:012}.jpg" if isinstance(number, int) else number)
        yield _annotated(name, texts.get(number, ()), id=number, domain=each.get("domain", ""))


def _karpathy(entry: Any) -> Annotated:  # noqa: ANN401
    name = os.path.join(entry.get("filepath", ""), _get(entry, "filename", str))  # noqa: PTH118
    texts = [_get(each, "raw", str) for each in _get(entry, "sentences", list)]
    return _annotated(name, texts, id=entry.get("cocoid"), split=entry.get("split", ""))


def _from_lines(text: str) -> Iterator[Annotated]:
    lines = text.splitlines()
    if lines and TOKEN_LINE.fullmatch(lines[0]):
        yield from _grouped(_token(number, line) for number, line in enumerate(lines, 1) if line)
        return
    header = lines[0] if lines else ""
    rows = csv.DictReader(io.StringIO(text), delimiter="|" if "|" in header else ",", skipinitialspace=True)
    names = {name.strip(): name for name in rows.fieldnames or ()}
    image = next((names[each] for each in IMAGE_COLUMNS if each in names), None)
    caption = next((names[each] for each in CAPTION_COLUMNS if each in names), None)
    if image is None or caption is None:
        raise InvalidRequest(f"{EXPECTED}; got a file that begins with {quoted(header)}")
    split = names.get("split", "")
    yield from _grouped((_get(row, image, str), _texts(row, caption), row.get(split) or "") for row in rows)


def _token(number: int, line: str) -> tuple[str, list[str], str]:
    found = TOKEN_LINE.fullmatch(line)
    if found is None:
        raise InvalidRequest(f"Expected IMAGE#NUMBER, a tab and a caption in line {number}, got {quoted(line)}")
    return found[1], [found[2]], ""


def _grouped(rows: Iterator[tuple[str, list[str], str]]) -> Iterator[Annotated]:
    """An image for each name. Rows have a name, captions and a split."""
    texts: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for name, found, split in rows:
        texts.setdefault(name, []).extend(found)
        splits[name] = split
    for name, all_texts in texts.items():
        yield _annotated(name, all_texts, split=splits[name])


def _annotated(image: str, texts: Sequence[str], **more: Any) -> Annotated:  # noqa: ANN401
    references = (" ".join(as_utf8(each).split()) for each in texts)  # a line break would end one early
    return Annotated(as_utf8(image), tuple(filter(None, references)), **more)


def _texts(entry: Any, name: str) -> list[str]:  # noqa: ANN401
    """The captions of an entry: one, a list, or a list as JSON."""
    found = _get(entry, name, str | list)
    if isinstance(found, str) and found.startswith("["):
        found = json.loads(found)
    texts = [found] if isinstance(found, str) else found
    return [_get({name: each}, name, str) for each in texts]


def _get(entry: Any, name: str, kind: Any) -> Any:  # noqa: ANN401
    if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
        raise InvalidRequest(f"Expected {name.strip()} as {KINDS[kind]} in each entry, got {quoted(entry)}")
    return entry[name]
