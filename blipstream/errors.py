# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one tree.

BlipstreamError
├── InvalidInput    a request is at fault: its sender can mend it
├── Overloaded      more requests wait than are worth waiting for: try again later
├── ArtifactError   a checkpoint or a built artifact is missing, broken or of the wrong kind
└── ServerError     the embedded server could not start, or died

Each message is one sentence: what was expected, what came, how to mend it.
"""


class BlipstreamError(Exception):
    """Base of all errors that Blipstream raises on purpose."""


class InvalidInput(BlipstreamError):
    """A request is at fault: its sender can mend it."""


class Overloaded(BlipstreamError):
    """More requests wait than are worth waiting for: try again later."""


class ArtifactError(BlipstreamError):
    """A checkpoint or a built artifact is missing, broken or of the wrong kind."""


class ServerError(BlipstreamError):
    """The embedded server could not start, or died."""


def error_of(model: str, message: str) -> BlipstreamError:
    """What another model refused with: Triton 2.51 calls all of it INTERNAL, so its words must tell what it was."""
    if "Exceeds maximum queue size" in message:
        return Overloaded(message)
    failed = any(words in message for words in ("Stub process", "Failed to process"))
    return InvalidInput(message) if model == "preprocess" and not failed else BlipstreamError(message)
