# SPDX-License-Identifier: Apache-2.0
"""The data, read and checked to the end before anything is trained."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from blipstream.errors import InvalidInput
from blipstream.images.pixels import load_pixels
from blipstream_client._exceptions import BlipstreamError as ClientError
from blipstream_client._exceptions import InvalidRequest
from blipstream_client._fetch import is_url
from blipstream_client._text import excerpt
from blipstream_client.bulk.items import Item

EXAMPLES = 3  # of a problem, which are named
SHOWN = 60  # characters of a name
AT_ONCE = 64  # images that are read together
NOT_UTF8 = re.compile(r"\ufffd|\\udc[89a-f][0-9a-f]")  # what the readers make of other bytes


class Place(NamedTuple):
    """Where the bytes of an image are: a file, or a part of the file that has those out of shards."""

    file: str
    offset: int = 0
    size: int = -1  # up to the end

    def read(self) -> bytes:
        """The bytes."""
        with Path(self.file).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Problems:
    """What is left out, counted by kind, with the first examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """Count one. Of a long name, the end is shown."""
        self.counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            shown = name if len(name) <= SHOWN else f"…{name[-SHOWN:]}"
            examples.append(f"{shown} {excerpt(detail)}".rstrip())

    def __str__(self) -> str:
        """A line for each kind."""
        return "\n".join(
            f"{kind}: {number:,}, such as {'; '.join(self._examples[kind])}" for kind, number in self.counts.items()
        )


@dataclass
class Data:
    """Images, each once, by the SHA-256 of their bytes, and the captions of each."""

    places: dict[str, Place] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Digests and captions, in an order that does not depend on that of the files."""
        return [(digest, each) for digest in sorted(self.captions) for each in sorted(self.captions[digest])]

    @property
    def digest(self) -> str:
        """A hash of all that is learnt from."""
        return hashlib.sha256(repr(self.pairs).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{len(self.pairs):,} captions of {len(self.captions):,} images"

    def only(self, digests: Iterable[str]) -> "Data":
        """Those of these images that have captions."""
        kept = [each for each in digests if self.captions.get(each)]
        return Data({each: self.places[each] for each in kept}, {each: self.captions[each] for each in kept})


def read_data(
    items: Iterable[Item], image_size: int, problems: Problems, spool: Path, workers: int, known: Iterable[str] = ()
) -> Iterator[Data]:
    """Read and check all items. Yields what there is so far, and at the end all, for whoever shows progress.

    Images that do not lie in files of their own are copied to the file `spool`. Those whose digest is `known` have
    been decoded before.
    """
    data, seen = Data(), set(known)
    items = iter(items)

    def check(content: bytes, digest: str) -> str:
        try:
            load_pixels(content, image_size)
        except InvalidInput as exc:
            return str(exc)
        seen.add(digest)
        return ""

    with spool.open("wb") as copies, ThreadPoolExecutor(workers) as pool:
        while some := _some(items, copies, spool, problems):
            faults = pool.map(lambda each: "" if each[3] in seen else check(each[2], each[3]), some)
            for (item, place, _, digest), fault in zip(some, faults, strict=True):
                if fault:
                    problems.add("images that are broken", item.name, f"({fault})")
                    continue
                data.places.setdefault(digest, place)
                _add_captions(data.captions.setdefault(digest, []), item, problems)
            yield data
    yield data


def _some(
    items: Iterator[Item], copies: BinaryIO, spool: Path, problems: Problems
) -> list[tuple[Item, Place, bytes, str]]:
    """The next items whose images can be read, with their bytes and digests."""
    found = []
    try:
        for item in islice(items, AT_ONCE):
            if not (loaded := _load(item, problems)):
                continue
            place, content = loaded
            if place is None:
                place = Place(str(spool), copies.tell(), copies.write(content))
            found.append((item, place, content, hashlib.sha256(content).hexdigest()))
    except ClientError as exc:
        raise InvalidInput(str(exc)) from exc
    copies.flush()
    return found


def _load(item: Item, problems: Problems) -> tuple[Place | None, bytes] | None:
    """The bytes of an item's image, and their place if it is a file of its own. None if they cannot be read."""
    try:
        loaded = item.load()
        if isinstance(loaded, bytes):
            return None, loaded
        if is_url(loaded):
            problems.add("images that are URLs, which are not fetched", loaded)
            return None
        with open(loaded, "rb") as file:  # noqa: PTH123  # Path raises for odd names
            return Place(os.path.abspath(loaded)), file.read()  # noqa: PTH100
    except FileNotFoundError:
        problems.add("images that are missing", item.name)
    except (InvalidRequest, OSError) as exc:
        problems.add("images that cannot be read", item.name, f"({exc})")
    return None


def _add_captions(captions: list[str], item: Item, problems: Problems) -> None:
    if not item.texts:
        problems.add("images without a caption", item.name)
    for text in item.texts:
        caption = " ".join(unicodedata.normalize("NFC", text or "").split())
        if not caption:
            problems.add("captions that are empty", item.name)
        elif NOT_UTF8.search(caption):
            problems.add("captions that are not UTF-8", item.name, repr(caption))
        elif caption in captions:
            problems.add("duplicates", item.name, repr(caption))
        else:
            captions.append(caption)


def split(data: Data, share: float) -> tuple[Data, Data]:
    """Training and validation data. An image is in one of them, and stays there when others are added."""
    digests = sorted(data.captions)  # which is as good as random
    number = max(1, round(share * len(digests))) if share else 0
    return data.only(digests[number:]), data.only(digests[:number])
