# SPDX-License-Identifier: Apache-2.0
"""When the time for a request is up."""

import time
from collections.abc import Callable

from blipstream.errors import TIMED_OUT, BlipstreamError, Gone, TimedOut


class Deadline:
    """The time limit of a request. Each step of the work asks it first."""

    def __init__(self, timeout: int, is_cancelled: Callable[[], bool]) -> None:
        """`timeout` is in microseconds from now; 0 means no limit."""
        self._timeout = timeout
        self._is_cancelled = is_cancelled
        self._began = time.monotonic_ns()

    def left(self) -> int:
        """The microseconds that are left, or 0 if there is no limit.

        Raises Gone if the client has cancelled the request, and TimedOut if the time is up.
        """
        if self._is_cancelled():
            raise Gone
        if not self._timeout:
            return 0
        left = self._timeout - (time.monotonic_ns() - self._began) // 1000
        if left <= 0:
            raise TimedOut(TIMED_OUT)
        return left

    def why_over(self) -> BlipstreamError | None:
        """What `left` raises; None if somebody waits."""
        try:
            self.left()
        except BlipstreamError as error:
            return error
        return None
