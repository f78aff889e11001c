# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one tree.

BlipstreamError
├── InvalidInput    a request is at fault: its sender can mend it
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
