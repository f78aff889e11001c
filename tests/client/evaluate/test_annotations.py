# SPDX-License-Identifier: Apache-2.0
"""Each layout of annotations, in a few lines as its data set has them."""

import json
from pathlib import Path
from typing import Any

import pytest

from blipstream_client import InvalidRequest
from blipstream_client.evaluate.annotations import Annotated, read_annotations

COCO = {
    "info": {"year": 2014},
    "images": [
        {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 360},
        {"id": 7, "file_name": "COCO_val2014_000000000007.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 391895, "caption": "A man on a\nmoped. "},
        {"id": 2, "image_id": 7, "caption": "Two dogs."},
        {"id": 3, "image_id": 391895, "caption": "A red helmet."},
        {"id": 4, "image_id": 391895, "caption": " "},
    ],
}
KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "COCO_val2014_000000391895.jpg",
            "cocoid": 391895,
            "split": split,
            "sentences": [{"tokens": ["a", "man"], "raw": "A man."}, {"tokens": ["a", "dog"], "raw": "A dog."}],
        }
        | {"filename": f"{split}.jpg"}
        for split in ("train", "restval", "val", "test")
    ],
}


def read(content: object, split: str | None = None) -> list[Annotated]:
    text = content if isinstance(content, str) else json.dumps(content)
    Path("annotations").write_text(text, encoding="utf-8")
    return read_annotations("annotations", split)


def pairs(found: list[Annotated]) -> dict[str, tuple[str, ...]]:
    return {each.image: each.references for each in found}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_coco() -> None:
    first, second = read(COCO)
    assert first == Annotated("COCO_val2014_000000391895.jpg", ("A man on a moped.", "A red helmet."), 391895)
    assert second.references == ("Two dogs.",)


def test_the_authors_ground_truth_has_no_names() -> None:
    images = [{"id": 391895}, {"id": 7}]
    assert [each.image for each in read({"annotations": COCO["annotations"], "images": images})] == [
        "COCO_val2014_000000391895.jpg",
        "COCO_val2014_000000000007.jpg",
    ]


def test_nocaps_has_domains() -> None:
    images = [{"id": 0, "file_name": "0013ea2087020901.jpg", "domain": "near-domain", "open_images_id": "0013ea"}]
    (found,) = read({"images": images, "annotations": [{"image_id": 0, "caption": "A saxophone."}], "licenses": []})
    assert found == Annotated("0013ea2087020901.jpg", ("A saxophone.",), 0, domain="near-domain")


@pytest.mark.parametrize(("split", "name"), [(None, "test.jpg"), ("val", "val.jpg")])
def test_karpathys_splits(split: str | None, name: str) -> None:
    (found,) = read(KARPATHY, split)
    assert found == Annotated(f"val2014/{name}", ("A man.", "A dog."), 391895, split=split or "test")


def test_karpathys_flickr30k_has_no_folders() -> None:
    images = [{"filename": "1000092795.jpg", "split": "test", "imgid": 0, "sentences": [{"raw": "Two men."}]}]
    assert pairs(read({"images": images, "dataset": "flickr30k"})) == {"1000092795.jpg": ("Two men.",)}


def test_the_authors_lists() -> None:
    name = "val2014/COCO_val2014_000000391895.jpg"
    (found,) = read([{"image": name, "caption": ["A man.", "A dog."]}])
    assert (found.references, found.known_id) == (("A man.", "A dog."), 391895)
    one_by_one = [{"image": name, "caption": text, "image_id": "coco_0"} for text in ("A man.", "A dog.")]
    assert read(one_by_one) == [found]


@pytest.mark.parametrize(
    "text",
    [
        "1.jpg#0\tTwo men, outside .\n1.jpg#1\tA man .\n2.jpg#0\tA dog .\n",
        'image,caption\n1.jpg,"Two men, outside ."\n1.jpg,A man .\n2.jpg,A dog .\n',
        "\ufeffimage_name| comment_number| comment\n"
        "1.jpg| 0| Two men, outside .\n1.jpg| 1| A man .\n2.jpg| 0| A dog .\n",
        'raw,sentids,split,filename,img_id\n"[""Two men, outside ."", ""A man .""]","[0, 1]",test,1.jpg,0\n'
        '"[""A dog .""]",[5],test,2.jpg,1\n"[""A cat .""]",[6],train,3.jpg,2\n',
    ],
    ids=["token", "csv", "bars", "lists"],
)
def test_flickr30k(text: str) -> None:
    assert pairs(read(text)) == {"1.jpg": ("Two men, outside .", "A man ."), "2.jpg": ("A dog .",)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Expected JSON as COCO"),
        ("a table\nof something\n", "got a file that begins with 'a table'"),
        ({"images": [], "categories": []}, "got an object with images, categories"),
        ([{"image_id": 1, "caption": "A man."}], "got [{'image_id': 1, 'caption': 'A man.'}]"),
        ([], "got []"),
        ({"images": [], "annotations": []}, "annotations has none"),
        ({**COCO, "annotations": []}, "annotations has no caption of any of its 2 images"),
        ('{"images": [', "Cannot read annotations: "),
        ({**COCO, "annotations": [{"image_id": 7, "bbox": [1]}]}, "Expected caption as text in each entry, got {"),
        ({**COCO, "annotations": [7]}, "Expected image_id as text or a number in each entry, got 7"),
        ({**COCO, "images": [{"id": 7, "file_name": "a.jpg"}] * 2}, "has the image 'a.jpg' twice"),
        ([{"image": "a.jpg", "caption": ["A man.", 7]}], "Expected caption as text in each entry"),
        ("1.jpg#0\tA man.\n1.jpg A dog.\n", "a tab and a caption in line 2, got '1.jpg A dog.'"),
        ("image| comment\n1.jpg\n", "Expected comment as text or a list in each entry"),
    ],
)
def test_broken_annotations_are_one_sentence(content: object, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(content)
    assert words in str(caught.value)


def test_wrong_splits() -> None:
    with pytest.raises(InvalidRequest, match="no split 'nope' in annotations, which has train, restval, val, test"):
        read(KARPATHY, "nope")
    with pytest.raises(InvalidRequest, match="annotations has no splits: leave out --split"):
        read(COCO, "test")
    Path("annotations").write_bytes(b"image,caption\n1.jpg,caf\xe9\n")
    with pytest.raises(InvalidRequest, match="Cannot read annotations: 'utf-8' codec"):
        read_annotations("annotations", None)
