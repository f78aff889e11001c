# SPDX-License-Identifier: Apache-2.0
"""Sentences for people, on standard error. Standard output is for captions."""

import logging
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Timer
from types import TracebackType
from typing import Any, Self, TypeVar

import click
from click.exceptions import NoArgsIsHelpError

from blipstream_client._text import printable, shown_url

COLUMNS = 80
ERROR = "Error: "  # click begins its errors so
PATIENCE_SECONDS = 1.0  # that a command may wait without a word

T = TypeVar("T")


def on_terminal() -> bool:
    """Whether somebody reads along."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is no standard error, or it is closed
        return False


def say(sentence: str) -> None:
    """Print a sentence: in short lines on a terminal, and on one line where a program may read it."""
    sentence = _filled("\n".join(map(printable, sentence.split("\n"))))
    with suppress(AttributeError, OSError, ValueError):  # there is no standard error, or nobody reads it any more
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


class Saying(logging.Handler):
    """Says what the client logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        say(record.getMessage())


def hint(sentence: str) -> None:
    """Say on a terminal what may come next, on one line, which can be copied. A script knows."""
    if on_terminal():
        print(sentence, file=sys.stderr, flush=True)


def _filled(text: str) -> str:
    """The text in lines that fit the terminal, if there is one. A path or an address stays whole."""
    if not on_terminal():
        return text
    width = min(COLUMNS, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


class Failure(click.ClickException):
    """An error that ends the command. It is one sentence."""

    def show(self, file: Any = None) -> None:  # noqa: ANN401, ARG002
        """Print the sentence."""
        say(f"{ERROR}{self.message}")


class Misuse(click.UsageError):
    """A command line that click refuses."""

    def format_message(self) -> str:
        """The error, in short lines on a terminal, where click's "Error: " stands before it."""
        return _filled(f"{ERROR}{self.message}").removeprefix(ERROR)


@contextmanager
def in_short_lines() -> Iterator[None]:
    """On a terminal, break the errors of click's own, which may be of any length."""
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except click.UsageError as exc:
        raise Misuse(exc.format_message(), exc.ctx) from exc


class Waiting:
    """Says whom a command waits for, why and for how long, once that has lasted a second, and says when it is over."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url = shown_url(url)
        self._seconds = seconds
        self._lock = Lock()
        self._timer: Timer | None = None
        self._reason = ""
        self._is_told = False

    def begin(self, reason: str = "") -> None:
        """Nothing has come yet. `reason` is the error, in one sentence; without one, only a terminal is told."""
        if not (reason or on_terminal()):
            return
        with self._lock:
            self._reason = reason
            if self._timer is None:
                self._timer = Timer(PATIENCE_SECONDS, self._tell)
                self._timer.daemon = True
                self._timer.start()

    def end(self) -> None:
        """An answer has come."""
        if self._stop() and self._reason:
            say("The server answers.")

    def _stop(self) -> bool:
        """Be silent. Whether anything has been said."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            was_told, self._timer, self._is_told = self._is_told, None, False
            return was_told

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def until_first(self, results: Iterable[T]) -> Iterator[T]:
        """The same results. The waiting ends with the first."""
        self.begin()
        for result in results:
            self.end()
            yield result

    def _tell(self) -> None:
        with self._lock:
            if self._timer is None:
                return
            self._is_told = True
            begun = f"{self._reason}. Trying again" if self._reason else f"Waiting for {self._url}"
            say(f"{begun} for up to {self._seconds:g} s; Ctrl-C ends it.")
