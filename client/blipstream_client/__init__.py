# SPDX-License-Identifier: Apache-2.0
"""Captions for images from a Blipstream server, over gRPC or HTTP."""

from importlib import import_module

TYPE_CHECKING = False  # typing, which has it too, takes long to import
if TYPE_CHECKING:
    from blipstream_client._async_client import AsyncClient
    from blipstream_client._client import Client
    from blipstream_client._contract import Caption, Options, Piece
    from blipstream_client._exceptions import (
        AccessDenied,
        BlipstreamError,
        InvalidCertificate,
        InvalidImage,
        InvalidRequest,
        InvalidURL,
        ModelNotReady,
        RequestCancelled,
        RequestTimeout,
        ServerError,
        ServerOverloaded,
        ServerUnreachable,
    )
    from blipstream_client._images import ImageLike
    from blipstream_client._info import ServerInfo

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "BlipstreamError",
    "Caption",
    "Client",
    "ImageLike",
    "InvalidCertificate",
    "InvalidImage",
    "InvalidRequest",
    "InvalidURL",
    "ModelNotReady",
    "Options",
    "Piece",
    "RequestCancelled",
    "RequestTimeout",
    "ServerError",
    "ServerInfo",
    "ServerOverloaded",
    "ServerUnreachable",
    "__version__",
]

_HOMES = {
    "AsyncClient": "_async_client",
    "Caption": "_contract",
    "Client": "_client",
    "ImageLike": "_images",
    "Options": "_contract",
    "Piece": "_contract",
    "ServerInfo": "_info",
}  # of what is no error


def __getattr__(name: str) -> object:
    """Import what is asked for, so that the command line begins, and can be interrupted, at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES.get(name, '_exceptions')}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
