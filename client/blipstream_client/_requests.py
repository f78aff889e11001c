# SPDX-License-Identifier: Apache-2.0
"""The requests that a Triton server takes, before either protocol."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from blipstream_client._tensors import Tensors

ResponseT = TypeVar("ResponseT")


def new_id() -> str:
    """A request id that no other request has."""
    return secrets.token_hex(8)


class Request(Generic[ResponseT]):
    """Base of all requests. The type parameter is the type of the response."""


@dataclass(frozen=True)
class InferRequest(Request[Tensors]):
    """Asks a model for its outputs."""

    model: str
    inputs: Tensors
    request_id: str = field(default_factory=new_id)  # the same in every attempt


@dataclass(frozen=True)
class StreamRequest(Request[Tensors]):
    """Asks a decoupled model for its outputs, which come one set after another."""

    model: str
    inputs: Tensors
    request_id: str = field(default_factory=new_id)


@dataclass(frozen=True)
class ReadyRequest(Request[bool]):
    """Asks whether a model can serve."""

    model: str


@dataclass(frozen=True)
class MetadataRequest(Request[Mapping[str, Any]]):
    """Asks for the server's name and version."""


@dataclass(frozen=True)
class ConfigRequest(Request[Mapping[str, Any]]):
    """Asks for a model's config: a dictionary with the fields of config.pbtxt."""

    model: str
