# SPDX-License-Identifier: Apache-2.0
"""Third-party errors in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from blipstream_client._exceptions import BlipstreamError, InvalidRequest


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
        raise InvalidRequest(f"{problem}: {' '.join(str(exc).split()) or type(exc).__name__}") from exc
