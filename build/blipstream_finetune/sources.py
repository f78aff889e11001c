# SPDX-License-Identifier: Apache-2.0
"""Where the data lie: a folder, tables and shards, as `blipstream filter` reads them, COCO's JSON, or a data set of
Hugging Face's."""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from blipstream.errors import InvalidInput
from blipstream_client._exceptions import BlipstreamError as ClientError
from blipstream_client.bulk.items import Item, suffix
from blipstream_client.bulk.pairs import PairSources

CAPTION_COLUMNS = ("caption", "captions", "text", "sentences")


class Source(NamedTuple):
    """Items, and what has been left out so far because it is no pair."""

    items: Iterator[Item]
    left_out: Callable[[], str]


def open_source(data: str, images: Path | None, column: str | None, text_column: str | None) -> Source:
    """The images and captions of `data`, one after another. `images` is the folder of COCO's images.

    Raises InvalidInput if nothing is there, or not as expected.
    """
    path = Path(data)
    if suffix(data) == ".json" and path.is_file():
        if images is None:
            raise InvalidInput(f"{data} names images by their files: give the folder that has them as --images")
        return Source(_coco(path, images), str)
    if images is not None:
        raise InvalidInput(f"--images is for COCO's JSON, and {data} is none: leave it out")
    is_saved = any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    if is_saved or not path.exists():
        return Source(_hugging_face(data, is_saved, column, text_column), str)
    found = PairSources([data], column, allow_local_paths=True, text_column=text_column)
    try:
        found.check()
    except ClientError as exc:
        raise InvalidInput(str(exc)) from exc
    return Source(found.items(), lambda: str(found.left_out) if found.left_out else "")


def _coco(file: Path, folder: Path) -> Iterator[Item]:
    """The images of COCO's captions_*.json, or of Karpathy's dataset_coco.json, with all their captions."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        captions: dict[Any, list[str]] = {}
        if "annotations" in content:
            for each in content["annotations"]:
                captions.setdefault(each["image_id"], []).append(each["caption"])
            images = [(each["file_name"], captions.get(each["id"], [])) for each in content["images"]]
        else:
            images = [
                (str(Path(each.get("filepath", ""), each["filename"])), [s["raw"] for s in each["sentences"]])
                for each in content["images"]
                if each.get("split", "train") in ("train", "restval")
            ]
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{file} must be UTF-8, and is not: save it as UTF-8") from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidInput(
            f"{file} is not as COCO's captions are ({exc!r}): expected images with id and file_name, and annotations "
            "with image_id and caption"
        ) from exc
    for name, texts in images:
        path = str(folder / name)
        yield Item(path, lambda path=path: path, tuple(texts))  # type: ignore[misc]


def _hugging_face(
    data: str, is_saved: bool, column: str | None, text_column: str | None
) -> Iterator[Item]:  # pragma: no cover  # `datasets` is not among our packages
    """The training part of a data set of the hub, NAME or NAME:PART, or of one that save_to_disk() wrote."""
    if find_spec("datasets") is None:
        raise InvalidInput(
            f"{data} is a data set of Hugging Face's, for which you need datasets: pip install datasets"
            if is_saved
            else f"there is no file or folder {data}: mend the name; or, if it is a data set of the hub, "
            "pip install datasets"
        )
    datasets = import_module("datasets")

    name, _, part = data.partition(":")
    try:
        found = datasets.load_from_disk(name) if is_saved else datasets.load_dataset(name, split=part or "train")
        if isinstance(found, datasets.DatasetDict):
            found = found[part or "train"]
        image_at = column or next((key for key, kind in found.features.items() if isinstance(kind, datasets.Image)), "")
        text_at = text_column or next((each for each in CAPTION_COLUMNS if each in found.features), "")
        if not {image_at, text_at} <= set(found.features):
            raise InvalidInput(
                f"{data} has the columns {', '.join(found.features)}: name those of images and captions by --column "
                "and --text-column"
            )
        rows = found.cast_column(image_at, datasets.Image(decode=False))
    except InvalidInput:
        raise
    except Exception as exc:  # as many kinds as there are files and networks
        raise InvalidInput(f"{data} cannot be loaded as a data set: {exc}") from exc
    for number, row in enumerate(rows):
        image, texts = row[image_at], row[text_at]
        content = image["bytes"] or image["path"]
        yield Item(
            f"{data}#{number}",
            lambda content=content: content,  # type: ignore[misc]
            tuple(texts) if isinstance(texts, list) else (texts,),
        )
