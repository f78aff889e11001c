# SPDX-License-Identifier: Apache-2.0
"""Other libraries' exceptions in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from blipstream_client._exceptions import BlipstreamError, InvalidRequest
from blipstream_client._text import LONGEST_SENTENCE, excerpt


@contextmanager
def translated(problem: str, errors: type[Exception] = Exception) -> Iterator[None]:
    """Turn these exceptions into an InvalidRequest that begins with `problem`.

    The default is all exceptions: on damaged files, tarfile and pyarrow raise nearly every built-in type.
    """
    try:
        yield
    except BlipstreamError:
        raise
    except errors as exc:
        raise InvalidRequest(f"{problem}: {reason(exc)}") from exc


def reason(error: Exception) -> str:
    """The message of an exception on one line, with long file names cut."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
        return f"[Errno {error.errno}] {error.strerror}: {excerpt(error.filename)!r}"
    return excerpt(error, LONGEST_SENTENCE) or type(error).__name__
