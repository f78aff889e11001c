# SPDX-License-Identifier: Apache-2.0
"""The output row of an image."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Row:
    """An image and its caption or error. What is unknown is None."""

    name: str
    caption: str | None
    score: float | None
    options: str  # JSON: what was sent
    defaults: str | None  # JSON: what the server's operator has set for options that are not sent
    checkpoint: str | None
    width: int | None  # pixels, as stored
    height: int | None
    hash: str | None  # SHA-256 of the image's bytes
    error: str | None


COLUMNS = tuple(field.name for field in fields(Row))


def as_utf8(text: str) -> str:
    r"""The text without characters that UTF-8 cannot hold: the byte ff of a file's name becomes \udcff in letters."""
    return text.encode(errors="backslashreplace").decode()
