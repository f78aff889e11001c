# SPDX-License-Identifier: Apache-2.0
"""What is going on, on standard error: one line that renews itself on a terminal, else a line every few seconds."""

import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 5.0  # between lines, if standard error is no terminal
RENEW_SECONDS = 1.0
CLEAR = "\r\x1b[K"
WIDTH = 80


class Progress:
    """Shows texts of which only the newest counts. Other output is to come after `clear`."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = -LINE_SECONDS

    def show(self, text: str) -> None:
        """Show a text instead of the one before. Without a terminal, leave it out if the last one is not old enough."""
        if self._terminal:
            columns = min(shutil.get_terminal_size().columns, WIDTH)
            self._write(f"{CLEAR}{text[: columns - 1]}")
        elif time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self._write(f"{text}\n")

    def tell(self, text: str) -> None:
        """Write a text that stays."""
        self.clear()
        self._write(f"{textwrap.fill(text, WIDTH)}\n")

    def clear(self) -> None:
        """Remove the text, and let the next one show at once."""
        self._last = -LINE_SECONDS
        if self._terminal:
            self._write(CLEAR)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show the text and how long it has been true, until the `with` block ends. Gives a function to change it."""
        stop = threading.Event()
        what = text, time.monotonic()

        def change(text: str) -> None:
            nonlocal what
            what = text, time.monotonic()

        def tell() -> None:
            self.show(f"{text} ...")
            while not stop.wait(RENEW_SECONDS):
                now, since = what
                self.show(f"{now} ... {time.monotonic() - since:.0f} s")

        thread = threading.Thread(target=tell)
        thread.start()
        try:
            yield change
        finally:
            stop.set()
            thread.join()
            self.clear()

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
