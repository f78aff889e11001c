# SPDX-License-Identifier: Apache-2.0
"""The requests that wait for rows, in the order of their turns."""

from bisect import insort
from collections.abc import Iterator

from blipstream.decoding.request import Request

YIELDING = 2  # rows that are served first, others' included, for each row of the images before it in the same call


class RequestQueue:
    """First come, first served, but a call for many images lets others pass: of YIELDING rows served, it gets one.

    So others need not wait for all of its images, and it does not wait for ever: start-time fair queueing (Goyal et al.
    1996).
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._rows_served = 0  # ever

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        request.turn = self._rows_served + YIELDING * request.rows_before
        insort(self._requests, request, key=lambda each: each.turn)

    def first(self) -> Request | None:
        """The request whose turn it is."""
        return self._requests[0] if self._requests else None

    def take_first(self) -> Request:
        """Serve that request."""
        request = self._requests.pop(0)
        self._rows_served += request.max_rows
        return request

    def remove(self, request: Request) -> None:
        """Forget a request."""
        self._requests.remove(request)
