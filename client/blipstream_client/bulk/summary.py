# SPDX-License-Identifier: Apache-2.0
"""What has come of a run so far."""

from dataclasses import dataclass
from typing import ClassVar

from blipstream_client._text import LONGEST_SENTENCE, excerpt
from blipstream_client.bulk.rows import Row


@dataclass
class Summary:
    """The results so far."""

    needs: ClassVar[tuple[str, ...]] = ("name", "error")  # the columns that `count` reads

    text: ClassVar[str] = "text"  # the column of the texts that go with images

    found: int = 0  # rows of an earlier run
    succeeded: int = 0
    failures: int = 0
    is_safe: bool = False  # whether all rows are on the disk
    first_failure: str = ""
    left_out: str = ""  # files that are not images, in one sentence

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.succeeded + self.failures

    @property
    def outcome(self) -> str:
        """What has come of the rows without an error, in a few words. Empty if all have the same."""
        return ""

    def count(self, row: Row) -> None:
        """Count one row."""
        if row["error"] is None:
            self.succeeded += 1
            return
        self.failures += 1
        self.first_failure = self.first_failure or f"{excerpt(row['name'], LONGEST_SENTENCE)}: {row['error']}"
