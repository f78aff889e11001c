# SPDX-License-Identifier: Apache-2.0
"""What Triton 2.51 says in its own words, where its status does not tell errors apart.

It has one status, UNAVAILABLE or 503, for several errors, and in a stream 400 or none for all of them.
tests/client/test_triton_messages.py holds each message to the real server.
"""

import re
from typing import NamedTuple

from blipstream_client._exceptions import (
    AccessDenied,
    BlipstreamError,
    ModelNotReady,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)


class Meaning(NamedTuple):
    """What a message means."""

    kind: type[BlipstreamError]
    transient: bool


# The first that is part of a message counts.
MESSAGES = {
    "Exceeds maximum queue size": Meaning(ServerOverloaded, True),
    "Request timeout expired": Meaning(RequestTimeout, False),
    "is not at ready state": Meaning(ModelNotReady, True),
    "has no available versions": Meaning(ModelNotReady, True),
    "Request for unknown model": Meaning(ModelNotReady, False),
    "is restricted, expecting header": Meaning(AccessDenied, False),
    "Server is stopping": Meaning(ServerUnreachable, True),
    "Stub process": Meaning(ServerError, True),  # the process of a Python model has died
}

_PREFIX = re.compile(r"(?:\[request id: [^]]*\]|in ensemble '[^']*',|.*last error: \w+:)\s*")


def meaning(message: str) -> Meaning | None:
    """What one of Triton's own messages means. None for any other text."""
    return next((found for words, found in MESSAGES.items() if words in message), None)


def without_prefixes(message: str) -> str:
    """The message without what Triton and gRPC put before it: request id, ensemble, and "last error"."""
    while prefix := _PREFIX.match(message):
        message = message[prefix.end() :]
    return message
