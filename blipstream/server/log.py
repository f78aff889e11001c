# SPDX-License-Identifier: Apache-2.0
"""Triton's log: show it, keep it short, and find in it why something failed."""

import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from blipstream.errors import ServerError

MAX_BYTES = 16 << 20  # then the log begins anew, and the old one lies beside it as FILE.1
HARMLESS = (
    *("CudaDriverHelper", "unable to create stream"),  # in every log where there is no GPU
    "HandleCancellation called",  # a client has hung up
)


class Log:
    """The log of one server, across its restarts."""

    def __init__(self, path: Path, *, show: bool, keep: bool) -> None:
        """Create an empty log. `show` prints what comes into it, `keep` leaves it behind. Raises ServerError."""
        self.path = path.resolve()
        self.keep = keep
        self._show = show
        self._began = 0  # where the present process's part begins, in bytes
        self._shown = 0  # bytes that were printed
        try:
            self.file = self.path.open("ab")  # appending, so that Triton writes at the end after a truncation
            if self.path.is_file():
                self.file.truncate(0)
        except OSError as error:
            raise ServerError(
                f"the log {self.path} cannot be written ({error.strerror}): choose another with --log"
            ) from error

    def begin(self) -> None:
        """A new process is about to write."""
        self._began = self.file.seek(0, os.SEEK_END)

    def update(self) -> None:
        """Print what is new, and rotate the log if it is long."""
        self.show()
        self._rotate()

    def show(self) -> None:
        """Print what is new in the log, if asked for."""
        if not self._show:
            return
        with suppress(OSError):  # a full disk, or a reader who has gone, must not end the server
            with self.path.open("rb") as log:
                log.seek(self._shown)
                new = log.read()
            self._shown += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()

    def read(self) -> str:
        """What the present process has written."""
        with suppress(OSError), self.path.open("rb") as log:
            log.seek(self._began)
            return log.read().decode(errors="replace")
        return ""

    def close(self) -> None:
        """Close the log, and remove it unless it is to be kept."""
        self.file.close()
        if not self.keep:
            self.path.unlink(missing_ok=True)
            self._rotated.unlink(missing_ok=True)

    @property
    def _rotated(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def _rotate(self) -> None:
        """Copy a long log and empty it. What Triton writes between the two may be lost."""
        if not self.path.is_file() or self.path.stat().st_size <= MAX_BYTES:
            return
        with suppress(OSError):  # a full disk: emptying the log makes room
            shutil.copyfile(self.path, self._rotated)
        with suppress(OSError):
            os.truncate(self.path, 0)
            self._shown = self._began = 0


def failed_model(log: str) -> str:
    """The first model that failed to load, and why; empty if none did."""
    line = re.search(r"^E.*?\] (\"failed to load '.+\")$", log, re.MULTILINE)
    message = _unquote(line[1]).partition("\n\nAt:\n")[0] if line else ""  # what follows is a traceback
    status, error = r"(?:[A-Z][a-z ]+: )?", r"(?:\w+Error: )?"
    found = re.match(rf"failed to load '(.+?)' version \d+: {status}{error}(.*)", message, re.DOTALL)
    return f"model '{found[1]}' failed to load: {' '.join(found[2].split())}" if found else ""


def first_error(log: str) -> str:
    """The first error of Triton or of one of its processes, unless it is harmless; empty if there is none."""
    pattern = r"^(?:E\d{4} [^\]]*\] |error: |terminate called .*\n +what\(\): +)(.*)"
    errors = [_unquote(error) for error in re.findall(pattern, log, re.MULTILINE)]
    return next((" ".join(error.split()) for error in errors if not any(word in error for word in HARMLESS)), "")


def _unquote(text: str) -> str:
    """Triton logs its messages as JSON strings."""
    with suppress(ValueError):
        return str(json.loads(text))
    return text
