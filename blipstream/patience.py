# SPDX-License-Identifier: Apache-2.0
"""Whether a request's sender still waits for its answer."""

import time
from collections.abc import Callable
from typing import Any, Self

from blipstream.errors import TIMED_OUT, Gone, TimedOut


class Patience:
    """How long a sender waits, asked before each step of what is done for it."""

    def __init__(self, timeout: int, is_cancelled: Callable[[], bool]) -> None:
        """`timeout` is in microseconds from now on; 0: there is none."""
        self._timeout = timeout
        self._is_cancelled = is_cancelled
        self._began = time.monotonic_ns()

    @classmethod
    def of(cls, request: Any, sender: Any) -> Self:  # noqa: ANN401
        """That of who sent a request of Triton's."""
        return cls(request.timeout(), sender.is_cancelled)

    def left(self) -> int:
        """Microseconds, or 0 for any number. Raises Gone or TimedOut where nobody waits any more."""
        if self._is_cancelled():
            raise Gone
        if not self._timeout:
            return 0
        left = self._timeout - (time.monotonic_ns() - self._began) // 1000
        if left <= 0:
            raise TimedOut(TIMED_OUT)
        return left
