# SPDX-License-Identifier: Apache-2.0
"""The config.json beside every artifact: all that a loader needs to know about the checkpoint."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from blipstream.errors import ArtifactError

CONFIG_NAME = "config.json"
BUILD_HINT = "build it with `blipstream build --repository REPOSITORY`"
# folders of artifacts in a model's version folder, as globs; an encoder has one for each runtime
ARTIFACTS = {"preprocess": "artifact", "encoder": "[!.]*", "decoder": "artifact"}

DType = Literal["auto", "bf16", "f16", "f32"]


@dataclass(frozen=True)
class VisionConfig:
    """The shape of the ViT encoder, and the normalisation of its pixels."""

    image_size: int  # pixels, both sides
    patch_size: int  # pixels, both sides
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    layer_norm_eps: float
    image_mean: tuple[float, float, float]  # of pixels in 0..1
    image_std: tuple[float, float, float]


@dataclass(frozen=True)
class TextConfig:
    """The shape of the text decoder, and its special tokens."""

    vocab_size: int
    hidden_size: int
    encoder_hidden_size: int  # width of image_embeds
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    layer_norm_eps: float
    start_token_id: int  # [DEC]
    end_token_id: int  # [SEP]


@dataclass(frozen=True)
class CheckpointConfig:
    """A BLIP captioner: where it comes from, and its shape."""

    checkpoint: str  # hub name or folder name
    revision: str  # hash of the weights, the settings, the tokenizer and the processor
    dtype: DType  # what to compute in; auto: f16 on a GPU, bf16 where the CPU has it, else f32
    vision: VisionConfig
    text: TextConfig
    option_defaults: Mapping[str, Any] = field(default_factory=dict)  # decoding options, by its generation config

    @property
    def origin(self) -> str:
        """The checkpoint's name and the start of its revision, for messages."""
        return f"{self.checkpoint}@{self.revision[:12]}"

    def save(self, folder: Path, **extra: object) -> None:
        """Write config.json into `folder`. `load` ignores the fields of `extra`."""
        text = json.dumps(asdict(self) | extra, indent=2)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "CheckpointConfig":
        """Read `folder`'s config.json. Raises ArtifactError if there is none, or if another version wrote it."""
        path = folder / CONFIG_NAME
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            vision = values["vision"]
            for name in ("image_mean", "image_std"):
                vision[name] = tuple(vision[name])
            return cls(
                checkpoint=values["checkpoint"],
                revision=values["revision"],
                dtype=values["dtype"],
                vision=VisionConfig(**vision),
                text=TextConfig(**values["text"]),
                option_defaults=dict(values.get("option_defaults", {})),  # 0.2.0 wrote none
            )
        except FileNotFoundError as exc:
            raise ArtifactError(f"there is no artifact in {folder}: {BUILD_HINT}") from exc
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtifactError(f"{path} is not one that this version writes: {BUILD_HINT}") from exc


def of_one_checkpoint(folder: Path) -> Path:
    """Check that a model's artifact and those of the models beside it come from one checkpoint; returns `folder`.

    Raises ArtifactError if they come from two: their shapes may fit, and the captions would be nonsense. A model that
    is not there is not checked: Triton puts each model that it fetches from an object store into a folder of its own.
    Of the encoder's runtimes, one that fits is enough.
    """
    config, version = CheckpointConfig.load(folder), folder.parent
    for model, artifacts in ARTIFACTS.items():
        around = version.parents[1] / model / version.name
        others = list(_readable(around, artifacts)) if around != version else []
        if others and config.revision not in {other.revision for other in others}:
            raise ArtifactError(
                f"{version.parent.name} was built from {config.origin} and {model} from {others[0].origin}, where one "
                f"checkpoint is expected in {version.parents[1]}: {BUILD_HINT}, or wait until that is done"
            )
    return folder


def _readable(version: Path, artifacts: str) -> Iterator[CheckpointConfig]:
    """Those that can be read. For the others, their own model raises the error."""
    for path in sorted(version.glob(f"{artifacts}/{CONFIG_NAME}")):
        with suppress(ArtifactError):
            yield CheckpointConfig.load(path.parent)
