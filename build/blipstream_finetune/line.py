# SPDX-License-Identifier: Apache-2.0
"""Progress in one line, which is written anew on a terminal. Elsewhere, there is a new one every few seconds."""

import sys
import time

import click

TERMINAL_SECONDS, LINE_SECONDS = 0.2, 10.0  # between two lines


class Line:
    """The line."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a new one."""
        return time.monotonic() - self._shown >= (TERMINAL_SECONDS if sys.stdout.isatty() else LINE_SECONDS)

    def show(self, line: str) -> None:
        """Write what the next line replaces."""
        self._shown = time.monotonic()
        click.echo(f"\r\033[K{line}" if sys.stdout.isatty() else line, nl=not sys.stdout.isatty())

    def say(self, line: str) -> None:
        """Write what stays."""
        self.clear()
        click.echo(line)

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if sys.stdout.isatty():
            click.echo("\r\033[K", nl=False)
