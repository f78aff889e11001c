# SPDX-License-Identifier: Apache-2.0
"""Load a BLIP captioner in transformers' format, or say why it is none."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoTokenizer, BertTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.config import CheckpointConfig, DType, TextConfig, VisionConfig
from blipstream.errors import ArtifactError

CAPTIONER = "BlipForConditionalGeneration"
WEIGHTS = "*.safetensors"  # *.bin would be unpickled, and so could run anything
SETTINGS = ("*.json", "*.txt")


@dataclass(frozen=True)
class Checkpoint:
    """A captioner on disk, checked as far as its settings go; its weights are loaded on demand."""

    name: str  # as its user calls it
    folder: Path
    revision: str  # hash of all its files

    @classmethod
    def find(cls, name: str) -> "Checkpoint":
        """From a folder or a hub name. Raises ArtifactError where that holds no BLIP captioner."""
        folder = Path(name)
        if not folder.is_dir():
            folder = _download(name)
        settings = _read_settings(folder, name)
        kind = (settings.get("architectures") or ["a model of unknown architecture"])[0]
        if kind != CAPTIONER:
            raise ArtifactError(
                f"{name} is {kind} (model type {settings.get('model_type')}), not a BLIP captioner: "
                f"expected {CAPTIONER}, as in Salesforce/blip-image-captioning-base"
            )
        files = sorted(path for pattern in (*SETTINGS, WEIGHTS) for path in folder.glob(pattern))
        if not any(path.match(WEIGHTS) for path in files):
            raise ArtifactError(
                f"{name} has no weights: expected model.safetensors in {folder}; save others anew by save_pretrained"
            )
        revision = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                revision.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return cls(_short(name), folder, revision.hexdigest())

    def load_model(self) -> BlipForConditionalGeneration:
        """The model in f32, in evaluation mode, on the CPU. Raises ArtifactError where it is incomplete."""
        try:
            model, report = BlipForConditionalGeneration.from_pretrained(
                self.folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as exc:
            raise ArtifactError(f"{self.name} cannot be loaded: {' '.join(str(exc).split())}") from exc
        problems = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
        if problems:
            raise ArtifactError(
                f"{self.name} lacks weights, or has them in another shape: {', '.join(sorted(problems)[:3])}"
            )
        for part in (model.config.vision_config, model.config.text_config):
            if part.hidden_act != "gelu":
                raise ArtifactError(
                    f"{self.name} uses the activation {part.hidden_act}: expected gelu, as all of BLIP's do"
                )
        return model.eval()

    def load_tokenizer(self) -> BertTokenizer:
        """The checkpoint's tokenizer."""
        return AutoTokenizer.from_pretrained(self.folder)

    def load_image_processor(self) -> BlipImageProcessorPil:
        """The reference's preprocessing, through PIL."""
        return BlipImageProcessorPil.from_pretrained(self.folder)

    def config(self, model: BlipForConditionalGeneration, dtype: DType) -> CheckpointConfig:
        """What the engine needs to know of it."""
        processor, vision, text = (
            self.load_image_processor(),
            model.config.vision_config,
            model.config.text_config,
        )
        return CheckpointConfig(
            checkpoint=self.name,
            revision=self.revision,
            dtype=dtype,
            vision=VisionConfig(
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                hidden_size=vision.hidden_size,
                intermediate_size=vision.intermediate_size,
                num_layers=vision.num_hidden_layers,
                num_heads=vision.num_attention_heads,
                layer_norm_eps=vision.layer_norm_eps,
                image_mean=tuple(processor.image_mean),
                image_std=tuple(processor.image_std),
            ),
            text=TextConfig(
                vocab_size=text.vocab_size,
                hidden_size=text.hidden_size,
                encoder_hidden_size=text.encoder_hidden_size,
                intermediate_size=text.intermediate_size,
                num_layers=text.num_hidden_layers,
                num_heads=text.num_attention_heads,
                max_positions=text.max_position_embeddings,
                layer_norm_eps=text.layer_norm_eps,
                start_token_id=text.bos_token_id,
                end_token_id=text.sep_token_id,  # generate() stops at [SEP]; eos_token_id is unused in BLIP
            ),
        )


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=[*SETTINGS, WEIGHTS]))
    except HFValidationError as exc:
        raise ArtifactError(f"there is no folder {name}, and it is no hub name either") from exc
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise ArtifactError(
            f"there is no folder {name}, and it could not be downloaded from the Hugging Face hub: "
            "check the name and the network, or download it elsewhere and give its folder"
        ) from exc


def _read_settings(folder: Path, name: str) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ArtifactError(f"{name} is no checkpoint: {folder} has no config.json") from exc
    except ValueError as exc:
        raise ArtifactError(f"{name} is no checkpoint: its config.json is not JSON") from exc
    return settings


def _short(name: str) -> str:
    return Path(name).resolve().name if Path(name).is_dir() else name
