# SPDX-License-Identifier: Apache-2.0
"""What is written of an image."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Row:
    """One image, and its caption or the error it met. What is unknown is None."""

    name: str
    caption: str | None
    score: float | None
    options: str  # JSON
    checkpoint: str | None
    width: int | None  # pixels, as stored
    height: int | None
    hash: str | None  # SHA-256 of the image's bytes
    error: str | None


COLUMNS = tuple(field.name for field in fields(Row))


def spelled(text: str) -> str:
    r"""The same as UTF-8 can have it: \udcff is the byte ff of a file's name that is none."""
    return text.encode(errors="backslashreplace").decode()
