# SPDX-License-Identifier: Apache-2.0
"""The exceptions of the client.

* BlipstreamError
  * InvalidURL           the server's address cannot be used
  * InvalidCertificate   a certificate or key file cannot be used
  * InvalidRequest       the server, or the client before it sends anything, refuses the request
    * InvalidImage       the image cannot be read, fetched, sent or decoded
  * AccessDenied         the server wants other credentials
  * RequestCancelled     the client was closed before the response came
  * RequestTimeout       no response came in time
  * ServerUnreachable    no server responds at the address
  * ServerOverloaded     the server's queue is full: try again later
  * ModelNotReady        the server has no such model, or has not loaded it yet
  * ServerError          the server failed, or its response makes no sense

The server's package has a tree of its own with the same base name. Neither package can import the other's, and a
program meets only one of them: this one when it sends requests.
"""


class BlipstreamError(Exception):
    """Base of all exceptions of this client. The text is one sentence, which may change; `code` does not."""

    code: str = "error"  # which error it is, in one stable word: the server's own, or the class's
    transient: bool = False  # whether the same request may succeed later, or at another endpoint
    request_id: str = ""  # as the server's log has it; empty if nothing was sent
    image: str = ""  # which image it is about: its path, URL or kind, and in `caption_many` its number, from 1


class InvalidURL(BlipstreamError):
    """The server's address cannot be used."""

    code = "invalid_url"


class InvalidCertificate(BlipstreamError):
    """A certificate or key file cannot be used."""

    code = "invalid_certificate"


class InvalidRequest(BlipstreamError):
    """The server, or the client before it sends anything, refuses the request."""

    code = "invalid_input"


class InvalidImage(InvalidRequest):
    """The image cannot be read, fetched, sent or decoded."""

    code = "invalid_image"


class AccessDenied(BlipstreamError):
    """The server wants other credentials."""

    code = "access_denied"


class RequestCancelled(BlipstreamError):
    """The client was closed before the response came."""

    code = "cancelled"


class RequestTimeout(BlipstreamError):
    """No response came in time."""

    code = "timeout"


class ServerUnreachable(BlipstreamError):
    """No server responds at the address."""

    code = "unreachable"
    transient = True


class ServerOverloaded(BlipstreamError):
    """The server's queue is full: try again later."""

    code = "overloaded"
    transient = True


class ModelNotReady(BlipstreamError):
    """The server has no such model, or has not loaded it yet. Only the latter is transient."""

    code = "not_ready"


class ServerError(BlipstreamError):
    """The server failed, or its response makes no sense."""

    code = "internal"
