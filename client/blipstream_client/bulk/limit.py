# SPDX-License-Identifier: Apache-2.0
"""The limit on requests in flight. It grows while the server accepts them, and halves when the server refuses one.

This is TCP's congestion control (RFC 5681): slow start, then additive increase and multiplicative decrease.
"""

from threading import Condition

from blipstream_client._files import MAX_BYTES

FIRST_LIMIT = 8
MOST_BYTES = 8 * MAX_BYTES  # of images in flight: gRPC holds several copies of each


class Limit:
    """The limit. Any number of threads may share one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(min(FIRST_LIMIT, most))
        self._was_refused = False
        self._in_flight = 0
        self._bytes = 0  # of the images in flight
        self._stale = 0  # responses to come that were requested before the last decrease
        self._changed = Condition()

    @property
    def current(self) -> int:
        """The number of requests that may be in flight now."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return self._in_flight

    def acquire(self, seconds: float | None = None) -> bool:
        """Wait until one more may be in flight, but at most so many seconds. False if it may not."""
        with self._changed:
            may = self._changed.wait_for(lambda: self._in_flight < self.current and self._bytes < MOST_BYTES, seconds)
            self._in_flight += may
            return may

    def hold(self, size: int) -> None:
        """Add the bytes of an image in flight."""
        with self._changed:
            self._bytes += size

    def release(self, size: int = 0) -> None:
        """One request, with so many bytes, is no longer in flight."""
        with self._changed:
            self._in_flight -= 1
            self._bytes -= size
            self._changed.notify()

    def accepted(self) -> None:
        """Raise the limit by one. After the first refusal: by one for each full round of requests."""
        with self._changed:
            self._stale = max(0, self._stale - 1)
            self._limit = min(self._limit + (1 / self._limit if self._was_refused else 1), self._most)
            self._changed.notify()

    def refused(self) -> None:
        """Halve the limit, but only once for all requests that were in flight together."""
        with self._changed:
            self._was_refused = True
            if self._stale == 0:
                self._limit = max(1.0, self._limit / 2)
                self._stale = self._in_flight
            else:
                self._stale -= 1
