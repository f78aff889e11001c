# SPDX-License-Identifier: Apache-2.0
"""The data: every layout gives the same pairs, and what is wrong is counted and named."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blipstream.errors import InvalidInput
from blipstream_client.bulk.extras import pyarrow
from blipstream_finetune.data import Data, Problems, read_data, split
from blipstream_finetune.sources import open_source
from tests.conftest import SAMPLES

pa = pyarrow("These tests")
CAPTIONS = {
    "a-book.jpg": ("a book", "ein Buch, groß"),
    "a-unicorn.jpg": ("une licorne près d'ici",),
    "two-whales.jpg": ("二頭の鯨",),
}
ROWS = [(name, text) for name, texts in CAPTIONS.items() for text in texts]


def read(source: Path, spool: Path, images: Path | None = None) -> tuple[Data, Problems]:
    problems = Problems()
    *_, data = read_data(open_source(str(source), images, None, None).items, 192, problems, spool, 2)
    return data, problems


def folder_with(names: tuple[str, ...], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(SAMPLES / name, folder)
    return folder


def images_in(folder: Path) -> Path:
    return folder_with(tuple(CAPTIONS), folder)


def metadata(folder: Path) -> Path:
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in ROWS]
    (images_in(folder) / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def table(folder: Path, kind: str = ".csv") -> Path:
    path = images_in(folder) / f"captions{kind}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if kind == ".tsv" else ",")
        writer.writerows([("image", "caption"), *ROWS])
    return path


def tab_separated(folder: Path) -> Path:
    return table(folder, ".tsv")


def lines(folder: Path) -> Path:
    path = images_in(folder) / "captions.jsonl"
    rows = [json.dumps({"image": name, "caption": list(texts)}) for name, texts in CAPTIONS.items()]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def parquet(folder: Path) -> Path:
    folder.mkdir()
    columns = {"image": [(SAMPLES / name).read_bytes() for name in CAPTIONS], "caption": list(CAPTIONS.values())}
    pa.parquet.write_table(pa.table(columns), folder / "captions.parquet")
    return folder


def parquet_with_paths(folder: Path) -> Path:
    path = folder / "captions.parquet"
    images_in(folder)
    pa.parquet.write_table(
        pa.table({"path": [str(folder / name) for name, _ in ROWS], "text": [t for _, t in ROWS]}), path
    )
    return path


def shards(folder: Path) -> Path:
    folder.mkdir()
    for number, (name, texts) in enumerate(CAPTIONS.items()):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            described = json.dumps({"caption": list(texts)}).encode()
            for member, content in ((name, (SAMPLES / name).read_bytes()), (f"{Path(name).stem}.json", described)):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return folder


def coco(folder: Path) -> Path:
    path = images_in(folder) / "captions_train.json"
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)],
        "annotations": [
            {"image_id": number, "caption": text} for number, texts in enumerate(CAPTIONS.values()) for text in texts
        ],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def karpathy(folder: Path) -> Path:
    path = images_in(folder) / "dataset_coco.json"
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": text} for text in texts]}
        for name, texts in CAPTIONS.items()
    ]
    images.append({"filename": "none.jpg", "split": "test", "sentences": [{"raw": "not for training"}]})
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    return path


LAYOUTS = [metadata, table, tab_separated, lines, parquet, parquet_with_paths, shards, coco, karpathy]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    source = layout(tmp_path / "data")
    images = tmp_path / "data" if source.suffix == ".json" else None

    data, problems = read(source, tmp_path / "spool", images)

    expected, _ = read(metadata(tmp_path / "expected"), tmp_path / "other-spool")
    assert not problems.counts
    assert data.pairs == expected.pairs
    assert len(data.pairs) == len(ROWS)
    contents = {(SAMPLES / name).read_bytes() for name in CAPTIONS}
    assert {place.read() for place in data.places.values()} == contents


def test_captions_beside_the_images(tmp_path: Path) -> None:
    for name, texts in CAPTIONS.items():
        (images_in(tmp_path) / name).with_suffix(".txt").write_text(f"{texts[0]}\n", encoding="utf-8")
    data, problems = read(tmp_path, tmp_path / "spool")
    assert not problems.counts
    assert sorted(each for _, each in data.pairs) == sorted(texts[0] for texts in CAPTIONS.values())


@pytest.mark.parametrize(
    ("name", "caption", "kind"),
    [
        ("none.jpg", b"a book", "images that are missing"),
        ("broken.jpg", b"a book", "images that are broken"),
        ("http://example.com/a.jpg", b"a book", "images that are URLs, which are not fetched"),
        ("a-book.jpg", b" ", "captions that are empty"),
        ("a-book.jpg", "a caf\xe9".encode("latin-1"), "captions that are not UTF-8"),
        ("two-whales.jpg", b"two  whales", "duplicates"),
    ],
)
def test_what_is_wrong_is_counted_and_named(name: str, caption: bytes, kind: str, tmp_path: Path) -> None:
    folder_with(("a-book.jpg", "two-whales.jpg"), tmp_path)
    (tmp_path / "broken.jpg").write_bytes((SAMPLES / "a-book.jpg").read_bytes()[:200])
    path = tmp_path / "captions.csv"
    path.write_bytes(b"image,caption\ntwo-whales.jpg,two whales\n" + name.encode() + b"," + caption + b"\n")

    data, problems = read(path, tmp_path / "spool")

    assert problems.counts == {kind: 1}
    assert name in str(problems)
    assert [each for _, each in data.pairs] == ["two whales"]


def test_an_image_without_a_caption(tmp_path: Path) -> None:
    folder_with(("a-book.jpg",), tmp_path)
    data, problems = read(tmp_path, tmp_path / "spool")
    assert problems.counts == {"images without a caption": 1}
    assert not data.pairs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not as COCO's captions are"),
        (b"[]", "not as COCO's captions are"),
        (b'{"images": []', "not as COCO's captions are"),
        (b'{"images": "\xe9"}', "must be UTF-8"),
    ],
)
def test_json_that_is_not_cocos_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        list(open_source(str(tmp_path / "captions.json"), tmp_path, None, None).items)


def test_the_split_keeps_an_image_in_its_part(tmp_path: Path) -> None:
    data, _ = read(metadata(tmp_path / "data"), tmp_path / "spool")
    training, held_out = split(data, 0.4)
    assert not training.captions.keys() & held_out.captions.keys()
    assert sorted(training.pairs + held_out.pairs) == data.pairs
    assert len(held_out.captions) == 1
