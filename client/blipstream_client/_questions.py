# SPDX-License-Identifier: Apache-2.0
"""What a server can be asked, in no protocol yet."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from blipstream_client._contract import Tensors

AnswerT = TypeVar("AnswerT")


def new_id() -> str:
    """What no other request is called."""
    return secrets.token_hex(8)


class Question(Generic[AnswerT]):
    """Base of them all; the parameter is the kind of answer."""


@dataclass(frozen=True)
class Infer(Question[Tensors]):
    """A model's outputs for these inputs."""

    model: str
    inputs: Tensors
    request_id: str = field(default_factory=new_id)  # the same in every attempt


@dataclass(frozen=True)
class InferStream(Question[Tensors]):
    """What a decoupled model answers to these inputs, one set of outputs after another."""

    model: str
    inputs: Tensors
    request_id: str = field(default_factory=new_id)


@dataclass(frozen=True)
class IsReady(Question[bool]):
    """Whether a model can serve."""

    model: str


@dataclass(frozen=True)
class GetServer(Question[Mapping[str, Any]]):
    """The server's name and version."""


@dataclass(frozen=True)
class GetConfig(Question[Mapping[str, Any]]):
    """A model's config, as a dictionary of what config.pbtxt says."""

    model: str
