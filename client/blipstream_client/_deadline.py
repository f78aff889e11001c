# SPDX-License-Identifier: Apache-2.0
"""The time that a request has."""

import time
from collections.abc import Iterator


class Deadline:
    """The moment when a request's time is up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Start anew, with the same number of seconds."""
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds that are left, and never less than 0.001."""
        return max(self._end - time.monotonic(), 0.001)

    def at_most(self, seconds: float) -> "Deadline":
        """A deadline in so many seconds, or this one if it is sooner."""
        return Deadline(min(self.left(), seconds))

    def shares(self, count: int) -> Iterator["Deadline"]:
        """Deadlines for `count` steps in a row. Each has an even share of the time that is left when it begins."""
        for remaining in range(count, 0, -1):
            yield Deadline(self.left() / remaining)

    def microseconds_left(self) -> int:
        """The time that is left, for Triton's request parameter `timeout`.

        A model whose queue policy has `allow_timeout_override` drops a request when its time is up. Others ignore it.
        """
        return int(self.left() * 1e6)

    def check(self) -> None:
        """Raise TimeoutError if the time is up."""
        if self.is_over():
            raise TimeoutError

    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._end
