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
# folders of artifacts in a model's version folder, as globs; some have one for each runtime
ARTIFACTS = {"preprocess": "artifact", "encoder": "[!.]*", "decoder": "artifact"}
MATCHING_ARTIFACTS = {"match_encoder": "[!.]*", "matcher": "[!.]*"}
ENCODERS = ("encoder", "match_encoder")  # the models that give image_embeds
MATCHING = (*MATCHING_ARTIFACTS, "match", "explain_match", "embed_image", "embed_text")  # all models of matching

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
    weights_hash: str = ""  # encoders with the same one, and the same shape, are the same; 0.2.0 wrote none
    quantised: str = ""  # the 8-bit format of its linear layers: fp8; "" if they compute in the checkpoint's dtype


@dataclass(frozen=True)
class TextConfig:
    """The shape of the text decoder or encoder, and its special tokens."""

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
class MatchConfig:
    """What matching needs to know beside the shapes."""

    text_token_id: int  # the first token of a text that is read alone: [CLS]
    pair_token_id: int  # the first token of a text that is read with an image: [ENC], if the checkpoint knows it
    embedding_size: int
    encoder: str  # the model that gives image_embeds: match_encoder, or the captioner's if that is the same


@dataclass(frozen=True)
class CheckpointConfig:
    """A BLIP checkpoint: where it comes from, and its shape."""

    checkpoint: str  # hub name or folder name
    revision: str  # hash of the weights, the settings, the tokenizer and the processor
    dtype: DType  # what to compute in; auto: f16 on a GPU, bf16 where the CPU has it, else f32
    vision: VisionConfig
    text: TextConfig
    option_defaults: Mapping[str, Any] = field(default_factory=dict)  # decoding options, by its generation config
    matching: MatchConfig | None = None  # of a retrieval checkpoint

    @property
    def origin(self) -> str:
        """The checkpoint's name and the start of its revision, for messages."""
        return f"{self.checkpoint}@{self.revision[:12]}"

    @property
    def match_config(self) -> MatchConfig:
        """What matching needs to know. Raises ArtifactError if this is no retrieval checkpoint."""
        if self.matching is None:
            raise ArtifactError(f"{self.origin} is no retrieval checkpoint, as is expected for matching: {BUILD_HINT}")
        return self.matching

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
                matching=MatchConfig(**values["matching"]) if values.get("matching") else None,
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
    for model, artifacts in (ARTIFACTS if config.matching is None else MATCHING_ARTIFACTS).items():
        around = version.parents[1] / model / version.name
        others = list(readable_configs(around, artifacts)) if around != version else []
        if others and config.revision not in {other.revision for other in others}:
            raise ArtifactError(
                f"{version.parent.name} was built from {config.origin} and {model} from {others[0].origin}, where one "
                f"checkpoint is expected in {version.parents[1]}: {BUILD_HINT}, or wait until that is done"
            )
    return folder


def image_encoder_of(folder: Path, repository: Path) -> str:
    """The model that gives image_embeds to the matcher whose artifact is in `folder`.

    Raises ArtifactError if that is the captioner's encoder, and the `repository` has another one by now.
    """
    config = CheckpointConfig.load(folder)
    if why := misfit(config, repository, folder.parent.name):
        raise ArtifactError(why)
    return config.match_config.encoder


def misfit(config: CheckpointConfig, repository: Path, version: str = "1") -> str:
    """Why a matcher cannot have image_embeds of the captioner whose encoder it shares; empty if it can."""
    encoder = config.match_config.encoder
    if encoder in MATCHING_ARTIFACTS:
        return ""
    found = list(readable_configs(repository / encoder / version, "[!.]*"))
    if not found or config.vision in [each.vision for each in found]:
        return ""
    return (
        f"matching was built from {config.origin} to share a captioner's encoder, and {repository} has that of "
        f"{found[0].origin} now: build {config.checkpoint} again"
    )


def readable_configs(version: Path, artifacts: str) -> Iterator[CheckpointConfig]:
    """Those of a model's artifacts that can be read, given its version folder and a glob of ARTIFACTS.

    For the others, their own model raises the error.
    """
    for path in sorted(version.glob(f"{artifacts}/{CONFIG_NAME}")):
        with suppress(ArtifactError):
            yield CheckpointConfig.load(path.parent)
