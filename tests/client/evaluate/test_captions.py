# SPDX-License-Identifier: Apache-2.0
"""Captions that exist already, in each form, find their images."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blipstream_client import InvalidRequest
from blipstream_client.bulk.caption import COLUMNS
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.sinks import open_sink
from blipstream_client.evaluate.annotations import Annotated
from blipstream_client.evaluate.captions import Captioned, Index, joined, read_captions

ROWS = [("photos/1.jpg", "- a dog,\na cat", 0.5), ("photos/2.jpg", None, None)]
EXPECTED = [Captioned("photos/1.jpg", "- a dog, a cat", 0.5), Captioned("photos/2.jpg", None, None)]
ANNOTATED = [
    Annotated("val2014/COCO_val2014_000000000007.jpg", (), id=7),
    Annotated("val2014/COCO_val2014_000000000008.jpg", ()),
    Annotated("a/same.jpg", ()),
    Annotated("b/same.jpg", ()),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
def test_what_bulk_writes(name: str) -> None:
    sink = open_sink(name)
    sink.begin({}, COLUMNS)
    assert [*sink.recover(("name",))] == []
    for place, text, match in ROWS:
        sink.write({**dict.fromkeys(COLUMNS), "name": place, "caption": text, "match": match})
    sink.close()
    assert [*read_captions(name)] == EXPECTED


def test_a_single_parquet_file() -> None:
    arrow = pyarrow("This test")
    arrow.parquet.write_table(arrow.table({"image": ["1.jpg"], "caption": [""], "other": [1]}), "a")
    assert [*read_captions("a")] == [Captioned("1.jpg", "")]


def test_cocos_results() -> None:
    Path("results.json").write_text('[{"image_id": 7, "caption": "a dog"}]')
    assert [*read_captions("results.json")] == [Captioned(7, "a dog")]


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    with Path("a").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return Path("a").read_text()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda: as_csv([["file", "text"], ["1.jpg", "a dog"]]), "got file, text in a"),
        (lambda: '[{"image_id": 7}]', "got image_id in a"),
        (lambda: "[7]", "Expected an object with image_id and caption, got 7"),
        (lambda: '{"name": "1.jpg", "caption": "a dog"}\n{"na', "Cannot read a: "),
        (lambda: '["', "Cannot read a: "),
    ],
)
def test_broken_captions_are_one_sentence(write: Callable[[], str], words: str) -> None:
    Path("a").write_text(write())
    with pytest.raises(InvalidRequest) as caught:
        [*read_captions("a")]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (7, 0),
        ("7", None),
        (8, 1),  # by the number in the file's name
        ("COCO_val2014_000000000007.jpg", 0),
        ("/data/photos/COCO_val2014_000000000007.jpg", 0),
        ("/data/b/same.jpg", 3),
        ("/data/same.jpg", None),
        ("shard.tar/a/same.jpg", 2),
        (9, None),
    ],
)
def test_captions_find_their_images(image: int | str, found: int | None) -> None:
    expected = None if found is None else ANNOTATED[found]
    assert Index(ANNOTATED).find(image) == expected


def test_captions_are_joined() -> None:
    captions = [Captioned(7, "a dog"), Captioned("x.jpg", "a cat")]
    assert joined(captions, Index(ANNOTATED)) == ({ANNOTATED[0].image: captions[0]}, ["x.jpg"])
    with pytest.raises(InvalidRequest, match="There are two captions of 'val2014/COCO_"):
        joined([*captions, Captioned("COCO_val2014_000000000007.jpg", "a dog")], Index(ANNOTATED))
