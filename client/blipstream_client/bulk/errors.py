# SPDX-License-Identifier: Apache-2.0
"""Third-party errors in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from blipstream_client._exceptions import LONGEST_SENTENCE, BlipstreamError, InvalidRequest, excerpt


@contextmanager
def translated(problem: str, errors: type[Exception] = Exception) -> Iterator[None]:
    """Make these errors an InvalidRequest that begins with the problem.

    By default all, since on damaged files tarfile and pyarrow raise nearly every built-in type.
    """
    try:
        yield
    except BlipstreamError:
        raise
    except errors as exc:
        raise InvalidRequest(f"{problem}: {reason(exc)}") from exc


def reason(error: Exception) -> str:
    """What went wrong, on one line; of a file's name, no more than it takes to know it."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
        return f"[Errno {error.errno}] {error.strerror}: {excerpt(error.filename)!r}"
    return excerpt(error, LONGEST_SENTENCE) or type(error).__name__
