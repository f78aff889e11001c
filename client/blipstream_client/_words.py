# SPDX-License-Identifier: Apache-2.0
"""What others wrote, as messages repeat it."""

SHOWN = 72  # characters
TAIL = 24  # of them, from the end: of a path, it tells most


def shortened(text: str, length: int = SHOWN) -> str:
    """The same, without its middle if it is longer."""
    return text if len(text) <= length else f"{text[: length - TAIL - 1]}…{text[-TAIL:]}"
