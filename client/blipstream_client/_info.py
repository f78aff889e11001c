# SPDX-License-Identifier: Apache-2.0
"""A server's description of itself."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blipstream_client._exceptions import ServerError
from blipstream_client._requests import InferRequest
from blipstream_client._tensors import Tensors
from blipstream_client._text import excerpt

ADAPTERS = "adapters"  # the model that lists them


@dataclass(frozen=True)
class Calibration:
    """How matching is calibrated: match is the logistic function of logit / temperature."""

    temperature: float
    threshold: float  # the match from which on a text belongs to an image


@dataclass(frozen=True)
class Matching:
    """The retrieval checkpoint, with which a server matches and makes embeddings."""

    checkpoint: str | None  # NAME@REVISION, if the server says it
    dtype: str | None  # what the text encoder computes in: bf16, f16 or f32
    shares_encoder: bool  # whether the captioner's encoder sees the images, too


@dataclass(frozen=True)
class Adapter:
    """What a fine-tuning has added to the captioner. A caption may ask for it by its name."""

    name: str
    language: str  # a tag of BCP 47, such as pt-BR; "" if nobody said it
    base: str  # NAME@REVISION of the checkpoint that it was made for
    revision: str  # another one as soon as its files are others
    num_words: int  # tokens that it adds to the vocabulary
    metrics: Mapping[str, float]  # what its training measured, by name


@dataclass(frozen=True)
class ServerInfo:
    """A server's version, checkpoint, runtimes, options and adapters, and the defaults that its operator has set."""

    version: str  # of Triton
    checkpoint: str | None  # NAME@REVISION of the captioner, or of the retrieval checkpoint if there is no other
    runtimes: Mapping[str, str]  # of each model that requests pass through, such as openvino or tensorrt_plan
    options: tuple[str, ...]  # names of the optional inputs, with those of rerank
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of options, where they differ from the built-in ones
    fixed: tuple[str, ...] = ()  # names of the options that requests may not set
    models: tuple[str, ...] = ()  # those that it has for clients, such as caption and match
    calibration: Calibration | None = None  # of matching
    matching: Matching | None = None  # if there is a retrieval checkpoint
    adapters: tuple[Adapter, ...] = ()  # by name; empty if the server has none, or is too old to have any


def steps(config: Mapping[str, Any]) -> list[str]:
    """The models that an ensemble's requests pass through. Any other model is its own only step."""
    listed = config.get("ensemble_scheduling", {}).get("step", [])
    return [step["model_name"] for step in listed] or [config["name"]]


def checkpoint_of(server: Mapping[str, Any]) -> str | None:
    """NAME@REVISION from the server's metadata, or None if it has none. Raises ServerError."""
    with _checked():
        return server["name"] if "@" in server["name"] else None


def revision_of(checkpoint: str | None) -> str | None:
    """The revision in NAME@REVISION. Checkpoints with the same revision are the same, whatever their names."""
    return checkpoint and checkpoint.rpartition("@")[2]


def defaults_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The defaults that a server's operator has set, and the names of those that are fixed. Raises ServerError."""
    with _checked():
        fixed = _values(config, "fixed_options")
        return _values(config, "option_defaults") | fixed, tuple(fixed)


def calibration_of(config: Mapping[str, Any]) -> Calibration | None:
    """What the config of `match` says of its calibration; None if it is not calibrated. Raises ServerError."""
    with _checked():
        found = [_parameter(config, name) for name in ("temperature", "threshold")]
        values = [float(value) for value in found if value is not None]
        return Calibration(*values) if values else None


def retrieval_checkpoint_of(config: Mapping[str, Any]) -> str | None:
    """NAME@REVISION of the retrieval checkpoint, from the config of a model that needs it; None for others."""
    with _checked():
        return _parameter(config, "checkpoint")


def takes_adapters(config: Mapping[str, Any]) -> bool:
    """Whether a model's requests may ask for an adapter. An older server's may not. Raises ServerError."""
    with _checked():
        return "adapter" in _options(config)


def adapters_request(name: str = "") -> InferRequest:
    """Asks for the adapter of that name, or for all, if it is empty."""
    return InferRequest(ADAPTERS, {"adapter": np.array([[name.encode()]], np.object_)})


def adapters_of(outputs: Tensors) -> tuple[Adapter, ...]:
    """The adapters that the server lists. Raises ServerError."""
    with _checked():
        columns = (outputs[output].reshape(-1) for output in ("name", "language", "about"))
        return tuple(_adapter(*map(bytes.decode, row)) for row in zip(*columns, strict=True))


def changed_adapters(
    begun: Mapping[str, str] | None, now: Mapping[str, str] | None
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """The revisions of those that were there and are others now, as they were and as they are. More may have come."""
    there: Mapping[str, str] = now or {}
    changed = {name: revision for name, revision in (begun or {}).items() if there.get(name) != revision}
    return {**changed}, {name: there.get(name) for name in changed}


def parse_info(
    server: Mapping[str, Any],
    config: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Any]],
    models: Sequence[str] = (),
    matching: Mapping[str, Any] | None = None,
    reranking: Mapping[str, Any] | None = None,
    adapters: Sequence[Adapter] = (),
) -> ServerInfo:
    """The description, from the server's metadata, the model's config, all steps' configs, and what models it has.

    `matching` and `reranking` are the configs of `match` and `rerank`, if it has them. Raises ServerError.
    """
    with _checked():
        defaults, fixed = defaults_of(config)
        return ServerInfo(
            version=server["version"],
            checkpoint=checkpoint_of(server),
            runtimes={name: _runtime(part) for name, part in parts.items()},
            options=tuple(dict.fromkeys([*_options(config), *(_options(reranking) if reranking else ())])),
            defaults=defaults,
            fixed=fixed,
            models=tuple(models),
            calibration=calibration_of(matching or {}),
            matching=_matching(matching, parts) if matching else None,
            adapters=tuple(adapters),
        )


def resize_mode_of(config: Mapping[str, Any]) -> str:
    """How a model fits images to its square if nobody says it, from the model's config. Raises ServerError."""
    with _checked():
        values = _values(config, "option_defaults") | _values(config, "fixed_options")
        return str(values.get("resize_mode", "stretch"))


@contextmanager
def _checked() -> Iterator[None]:
    """Raise ServerError if the description lacks something."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as exc:
        raise ServerError(
            f"The server's description of itself is not one that Triton gives ({_what(exc)}): check the address"
        ) from exc


def _matching(config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> Matching:
    dtype = _parameter(parts.get("matcher", {}), "dtype")
    return Matching(retrieval_checkpoint_of(config), dtype, "encoder" in steps(config))


def _adapter(name: str, language: str, about: str) -> Adapter:
    told = json.loads(about)
    base = f"{told['base']}@{told['base_revision']}"
    return Adapter(name, language, base, told["revision"], told["num_words"], told["metrics"])


def _options(config: Mapping[str, Any]) -> list[str]:
    return [each["name"] for each in config["input"] if each.get("optional")]


def _what(error: Exception) -> str:
    """What is wrong with the description."""
    return f"without {error.args[0]}" if isinstance(error, KeyError) else excerpt(error)


def _runtime(config: Mapping[str, Any]) -> str:
    return _parameter(config, "runtime") or config["platform"] or config["backend"]


def _values(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options and their values in a parameter, which has them as JSON. Empty if there is none."""
    return dict(json.loads(_parameter(config, name) or "{}"))


def _parameter(config: Mapping[str, Any], name: str) -> str | None:
    found: str | None = config.get("parameters", {}).get(name, {}).get("string_value")
    return found
