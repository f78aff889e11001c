# SPDX-License-Identifier: Apache-2.0
"""Captions for images from a Blipstream server, over gRPC or HTTP."""

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
