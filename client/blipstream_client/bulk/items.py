# SPDX-License-Identifier: Apache-2.0
"""An image to caption, and what is left out since it is none."""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from blipstream_client._exceptions import excerpt
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.rows import spelled

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = "JPEG, PNG, WebP, BMP, GIF or TIFF"
SIGNATURE_BYTES = 16
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|II[*+]\0|MM\0[*+]"
    rb"|BM....\0\0\0\0",  # the zeros tell a BMP file from words
    re.DOTALL,
)
LONGEST_SUFFIX = 12
MOST_KINDS = 20  # that are told apart; the message shows as many


@dataclass(frozen=True)
class Item:
    """An image, where it is and what reads it."""

    place: str
    read: Callable[[], bytes | str]

    @property
    def name(self) -> str:
        """As its row has it."""
        return spelled(self.place)

    def load(self) -> bytes | str:
        """Its bytes, or the path or URL to read them from; call it at once.

        Raises InvalidImage where it alone cannot be read, and another InvalidRequest where nothing after it can.
        """
        with translated(f"Cannot read {excerpt(self.name)}"):
            return self.read()


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image whatever it holds, so that a damaged one is a row with an error."""
    return suffix(name) in IMAGE_SUFFIXES and not is_of_macos(name)


def is_of_macos(name: str) -> bool:
    """Whether it is what macOS keeps beside a file where its own file system is not: ._a.jpg or __MACOSX/a.jpg."""
    return os.path.basename(name).startswith("._") or "__MACOSX" in name.split("/")  # noqa: PTH119  # as in `suffix`


def is_image(first_bytes: bytes) -> bool:
    """Whether a file that begins so is an image of the server's formats."""
    return _SIGNATURE.match(first_bytes) is not None


def suffix(name: str) -> str:
    """In lower case. A Path would intern each name, for which Python's table of such strings becomes twice as large."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


class LeftOut:
    """Files that are no images of the server's formats, counted by kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, name: str, kind: str = "") -> None:
        """One more, of a kind that is its suffix if none is given. Hidden files are not worth a word."""
        if os.path.basename(name).startswith("."):  # noqa: PTH119  # as in `suffix`
            return
        kind = kind or suffix(name)
        if len(kind) <= 1 or (kind.startswith(".") and len(kind) > LONGEST_SUFFIX):
            kind = "without a suffix"
        if kind not in self._counts and len(self._counts) >= MOST_KINDS:
            kind = "others"
        self._counts[kind] += 1
        self._examples.setdefault(kind, spelled(name))

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        """One sentence, with the first of each kind."""
        total = self._counts.total()
        kinds = (f"{number:,} {kind} ({excerpt(self._examples[kind])})" for kind, number in self._counts.most_common())
        return f"{counted(total, 'file')} left out for not being {FORMATS}: {', '.join(kinds)}"


def counted(number: int, noun: str) -> str:
    """In words: 1 row, 2 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
