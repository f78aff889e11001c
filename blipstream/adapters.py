# SPDX-License-Identifier: Apache-2.0
"""Adapters as they lie beside a decoder's artifact: each in a folder that bears its name.

An adapter is what a fine-tuning has added to the text decoder: low-rank terms of its linear layers, and words. A folder
appears and disappears as a whole, also while a server runs.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path

from blipstream.config import CONFIG_NAME, CheckpointConfig
from blipstream.errors import ArtifactError, InvalidInput
from blipstream.options import SHOWN

FOLDER_NAME = "adapters"  # beside the decoder's artifact
WEIGHTS_NAME = "adapter.safetensors"
MOST_NAMES = 20  # in an error
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # one letter or digit first, so that no path is a name


@dataclass(frozen=True)
class AdapterConfig:
    """The config.json of an adapter."""

    base: str  # the name of the checkpoint that it was made for
    base_revision: str  # and its revision, as in CheckpointConfig
    revision: str  # hash of the adapter's own files
    language: str = ""  # a tag of BCP 47, such as pt-BR; "" if nobody said it
    num_words: int = 0  # tokens that it adds to the vocabulary; if there are any, its tokenizer.json knows them
    metrics: Mapping[str, float] = field(default_factory=dict)  # what its training measured, by name

    def save(self, folder: Path) -> None:
        """Write config.json into `folder`."""
        (folder / CONFIG_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "AdapterConfig":
        """Read `folder`'s config.json. Raises ArtifactError if there is none, or if another version wrote it."""
        path = folder / CONFIG_NAME
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as exc:
            raise ArtifactError(f"there is no adapter in {folder}") from exc
        except (TypeError, ValueError) as exc:
            raise ArtifactError(f"{path} is not one that this version writes: add the adapter again") from exc


def adapter_names(folder: Path) -> list[str]:
    """The names of all adapters in `folder`, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if NAME.fullmatch(each.name) and (each / CONFIG_NAME).exists())


def find_adapter(folder: Path, name: str, checkpoint: CheckpointConfig) -> AdapterConfig:
    """The adapter of that name in `folder`. Raises InvalidInput if there is none for this checkpoint."""
    try:
        if not NAME.fullmatch(name):
            raise ArtifactError(f"{name!r} is no adapter's name")
        config = AdapterConfig.load(folder / name)
    except ArtifactError:
        raise InvalidInput(_no_adapter(name, adapter_names(folder))) from None
    if config.base_revision != checkpoint.revision:
        raise InvalidInput(
            f"adapter {name} was made for {config.base}@{config.base_revision[:12]}, and this server has "
            f"{checkpoint.origin}: leave it out, or ask for it to be trained anew"
        )
    return config


def _no_adapter(name: str, names: list[str]) -> str:
    """The sentence for a name that no adapter has."""
    shown = repr(name if len(name) <= SHOWN else f"{name[:SHOWN]}...")
    if not names:
        return f"there is no adapter {shown}: this server has none"
    near = get_close_matches(name[:SHOWN], names, 1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return f"there is no adapter {shown}{guess}: there are {', '.join(names[:MOST_NAMES])}{more}"
