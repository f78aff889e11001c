# SPDX-License-Identifier: Apache-2.0
"""How many requests may be in flight: more as long as the server takes them, half as many once it refuses one.

As TCP does it (RFC 5681): a slow start, which doubles, then additive increase and multiplicative decrease.
"""

from threading import Condition

from blipstream_client._files import MAX_BYTES

FIRST_LIMIT = 8
MOST_BYTES = 8 * MAX_BYTES  # of images in flight: gRPC has each several times


class Limit:
    """Any number of threads may share one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(min(FIRST_LIMIT, most))
        self._was_refused = False
        self._in_flight = 0
        self._bytes = 0  # of what is in flight
        self._deaf_for = 0  # answers that were asked for before the last decrease, and say nothing new
        self._changed = Condition()

    @property
    def current(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def acquire(self, seconds: float | None = None) -> bool:
        """Wait until one more may be in flight, but no longer than that: whether it may."""
        with self._changed:
            may = self._changed.wait_for(lambda: self._in_flight < self.current and self._bytes < MOST_BYTES, seconds)
            self._in_flight += may
            return may

    def hold(self, size: int) -> None:
        """One in flight has so many bytes."""
        with self._changed:
            self._bytes += size

    def release(self, size: int = 0) -> None:
        """One, of so many bytes, is in flight no more."""
        with self._changed:
            self._in_flight -= 1
            self._bytes -= size
            self._changed.notify()

    def taken(self) -> None:
        """The server took a request: one more in flight, after the first refusal once so many as are in flight."""
        with self._changed:
            self._deaf_for = max(0, self._deaf_for - 1)
            self._limit = min(self._limit + (1 / self._limit if self._was_refused else 1), self._most)
            self._changed.notify()

    def refused(self) -> None:
        """The server refused one: half as many, but only once for all that were in flight together."""
        with self._changed:
            self._was_refused = True
            if self._deaf_for == 0:
                self._limit = max(1.0, self._limit / 2)
                self._deaf_for = self._in_flight
            else:
                self._deaf_for -= 1
