# SPDX-License-Identifier: Apache-2.0
"""The limit on open files: raise it, and bear with having reached it."""

import errno
import resource
import time
from collections.abc import Callable
from typing import TypeVar

NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE)
RETRY_SECONDS = 5.0
POLL_SECONDS = 0.1

T = TypeVar("T")


def raise_limit() -> None:
    """Open as many files as the system permits: each connection is one, and the usual 1,024 are soon used up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def retry(step: Callable[[], T]) -> T:
    """Call `step`; while no more files may be open, try again for up to RETRY_SECONDS, since others may close some.

    Raises what `step` raises.
    """
    deadline = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return step()
        except OSError as error:
            if error.errno not in NO_FILES_LEFT or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
