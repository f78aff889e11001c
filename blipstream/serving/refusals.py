# SPDX-License-Identifier: Apache-2.0
"""Refusals, and other answers that take no work, wait a moment before they are sent.

Triton 2.51 dies if a unary gRPC request is answered while the call that hands it over still runs, and its client hangs
up meanwhile: two threads then release the same state. On a busy machine, that call can take longer than it takes to
refuse the request. tests/chaos has the experiments.
"""

import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

DELAY_SECONDS = 0.1


class DelayedRefusals:
    """Sends refusals DELAY_SECONDS later, from a thread of its own, in their order."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[float, Callable[[], None]] | None] = SimpleQueue()
        self._closed = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, send: Callable[[], None]) -> None:
        """Call `send`, which must not raise, after the delay."""
        self._queue.put((time.monotonic() + DELAY_SECONDS, send))

    def close(self) -> None:
        """Send what still waits, then end."""
        self._closed.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while item := self._queue.get():
            due, send = item
            self._closed.wait(max(due - time.monotonic(), 0))
            send()
