# SPDX-License-Identifier: Apache-2.0
"""What a server says of itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from blipstream_client._exceptions import ServerError, quoted


@dataclass(frozen=True)
class ServerInfo:
    """What a server serves."""

    version: str  # of Triton
    checkpoint: str | None  # NAME@REVISION, if the server was told it: `tritonserver --id`
    runtimes: Mapping[str, str]  # of each model that a caption passes through, such as openvino or tensorrt_plan
    options: tuple[str, ...]  # what a request may ask for


def steps(config: Mapping[str, Any]) -> list[str]:
    """The models that an ensemble's requests pass through; a model that is no ensemble is its own only step."""
    listed = config.get("ensemble_scheduling", {}).get("step", [])
    return [step["model_name"] for step in listed] or [config["name"]]


def checkpoint_of(server: Mapping[str, Any]) -> str | None:
    """NAME@REVISION from the server's metadata, if it says so. Raises ServerError."""
    with _described():
        return server["name"] if "@" in server["name"] else None


def revision_of(checkpoint: str | None) -> str | None:
    """What makes a checkpoint the same, whatever its folder is called."""
    return checkpoint and checkpoint.rpartition("@")[2]


def parse_info(
    server: Mapping[str, Any], config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
) -> ServerInfo:
    """From the server's metadata, the model's config, and those of its steps. Raises ServerError."""
    with _described():
        return ServerInfo(
            version=server["version"],
            checkpoint=checkpoint_of(server),
            runtimes={name: _runtime(part) for name, part in parts.items()},
            options=tuple(each["name"] for each in config["input"] if each.get("optional")),
        )


@contextmanager
def _described() -> Iterator[None]:
    """Make what reading a strange description raises a ServerError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as exc:
        raise ServerError(f"The server's description of itself is not one that Triton gives: {quoted(exc)}") from exc


def _runtime(config: Mapping[str, Any]) -> str:
    parameters = config.get("parameters", {})
    named: str | None = parameters.get("runtime", {}).get("string_value")
    return named or config["platform"] or config["backend"]
