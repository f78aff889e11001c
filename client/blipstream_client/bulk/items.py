# SPDX-License-Identifier: Apache-2.0
"""Images to ask about, and files that are left out because they are not images."""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from blipstream_client._text import excerpt
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.rows import as_utf8

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = "JPEG, PNG, WebP, BMP, GIF or TIFF"
SIGNATURE_BYTES = 16
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|II[*+]\0|MM\0[*+]"
    rb"|BM....\0\0\0\0",  # the zeros tell a BMP file from text
    re.DOTALL,
)
LONGEST_SUFFIX = 12
MOST_KINDS = 20  # in a message


@dataclass(frozen=True)
class Item:
    """An image: its place, and a function that reads it."""

    place: str
    read: Callable[[], bytes | str]
    texts: tuple[str, ...] = ()  # that go with it

    @property
    def name(self) -> str:
        """The name in the image's rows."""
        return as_utf8(self.place)

    @property
    def rows(self) -> int:
        """The number of its rows: one for each text. Without texts, it has one all the same."""
        return len(self.texts) or 1

    def load(self) -> bytes | str:
        """The image's bytes, or the path or URL to read them from. Call it before the next item is taken.

        Raises InvalidImage if only this image cannot be read, and another InvalidRequest if nothing after it can.
        """
        with translated(f"Cannot read {excerpt(self.name)}"):
            return self.read()


def is_image_name(name: str) -> bool:
    """Whether the name is an image's. The file is then an item even if it is damaged, and its row has an error."""
    return suffix(name) in IMAGE_SUFFIXES and not is_of_macos(name)


def is_of_macos(name: str) -> bool:
    """Whether it is one of macOS's metadata files on other file systems: ._a.jpg or __MACOSX/a.jpg."""
    return os.path.basename(name).startswith("._") or "__MACOSX" in name.split("/")  # noqa: PTH119  # as in `suffix`


def is_image(first_bytes: bytes) -> bool:
    """Whether a file with these first bytes is an image in one of the server's formats."""
    return _SIGNATURE.match(first_bytes) is not None


def suffix(name: str) -> str:
    """The suffix in lower case. Path would intern each name, which doubles Python's table of interned strings."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


class LeftOut:
    """Counts files that are not what is expected, by kind."""

    def __init__(self, expected: str = FORMATS) -> None:
        self.expected = expected
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, name: str, kind: str = "") -> None:
        """Count a file. The kind is its suffix if none is given. Hidden files do not count."""
        if os.path.basename(name).startswith("."):  # noqa: PTH119  # as in `suffix`
            return
        kind = kind or suffix(name)
        if len(kind) <= 1 or (kind.startswith(".") and len(kind) > LONGEST_SUFFIX):
            kind = "without a suffix"
        if kind not in self._counts and len(self._counts) >= MOST_KINDS:
            kind = "others"
        self._counts[kind] += 1
        self._examples.setdefault(kind, as_utf8(name))

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        """One sentence, with an example of each kind."""
        total = self._counts.total()
        kinds = (f"{number:,} {kind} ({excerpt(self._examples[kind])})" for kind, number in self._counts.most_common())
        return f"{counted(total, 'file')} left out for not being {self.expected}: {', '.join(kinds)}"


def counted(number: int, noun: str) -> str:
    """The number and the noun: 1 row, 2 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
