# SPDX-License-Identifier: Apache-2.0
"""Captions, matches and embeddings from a Blipstream server, over gRPC or HTTP."""

from importlib import import_module

TYPE_CHECKING = False  # not from typing, which takes long to import
if TYPE_CHECKING:
    from blipstream_client._async_client import AsyncClient
    from blipstream_client._captions import Caption, Dropped, Piece
    from blipstream_client._client import Client
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
    from blipstream_client._explain_options import ExplainOptions
    from blipstream_client._explanation import Explanation, MatchExplanation
    from blipstream_client._images import ImageLike
    from blipstream_client._info import Adapter, Calibration, Matching, ServerInfo
    from blipstream_client._matches import Match, Matches
    from blipstream_client._options import Options
    from blipstream_client._rerank_options import RerankOptions

__version__ = "0.2.0"

__all__ = [
    "AccessDenied",
    "Adapter",
    "AsyncClient",
    "BlipstreamError",
    "Calibration",
    "Caption",
    "Client",
    "Dropped",
    "ExplainOptions",
    "Explanation",
    "ImageLike",
    "InvalidCertificate",
    "InvalidImage",
    "InvalidRequest",
    "InvalidURL",
    "Match",
    "MatchExplanation",
    "Matches",
    "Matching",
    "ModelNotReady",
    "Options",
    "Piece",
    "RequestCancelled",
    "RequestTimeout",
    "RerankOptions",
    "ServerError",
    "ServerInfo",
    "ServerOverloaded",
    "ServerUnreachable",
    "__version__",
]

_MODULES = {
    "Adapter": "_info",
    "AsyncClient": "_async_client",
    "Calibration": "_info",
    "Caption": "_captions",
    "Client": "_client",
    "Dropped": "_captions",
    "ExplainOptions": "_explain_options",
    "Explanation": "_explanation",
    "ImageLike": "_images",
    "Match": "_matches",
    "MatchExplanation": "_explanation",
    "Matches": "_matches",
    "Matching": "_info",
    "Options": "_options",
    "Piece": "_captions",
    "RerankOptions": "_rerank_options",
    "ServerInfo": "_info",
}  # of each name that is no exception


def __getattr__(name: str) -> object:
    """Import a name when it is first used, so that the command line starts, and can be interrupted, at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES.get(name, '_exceptions')}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
