# SPDX-License-Identifier: Apache-2.0
"""Load a BLIP captioner in transformers' format, or say why it is none."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer, BertTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import inspection
from blipstream.config import CheckpointConfig, DType, TextConfig, VisionConfig
from blipstream.errors import ArtifactError

WEIGHTS = ("*.safetensors",)  # *.bin would be unpickled, and so could run anything
SETTINGS = ("*.json", "*.txt")
TOKENIZER, IMAGE_PROCESSOR = ("tokenizer.json", "vocab.txt"), ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A captioner on disk, checked as far as can be without loading it; each part is loaded, and checked, on demand."""

    name: str  # as its user calls it
    folder: Path
    tokenizer: Path  # a file of its own, or of the processor that it was given
    image_processor: Path  # the same
    revision: str  # hash of all files

    @classmethod
    def find(cls, name: str, processor: str | None = None) -> "Checkpoint":
        """From a folder or a hub name; `processor` names where to take what it has no tokenizer or image processor for.

        Raises ArtifactError where that holds no BLIP captioner, or not all of one.
        """
        folder = _folder(name, SETTINGS + WEIGHTS)
        inspection.check_folder(folder, name)
        lender = _folder(processor, SETTINGS) if processor else None
        if lender:
            inspection.check_files(lender)
        lent = _files(lender, SETTINGS) if lender else []
        tokenizer, image_processor = (find(folder) for find in (_tokenizer, _image_processor))
        if lender and tokenizer and image_processor:
            raise ArtifactError(f"{name} has a tokenizer and an image processor of its own: leave out --processor")
        return cls(
            _short(name),
            folder,
            tokenizer or _borrow(_tokenizer, lender, f"{processor or name} has no tokenizer ({', '.join(TOKENIZER)})"),
            image_processor
            or _borrow(_image_processor, lender, f"{processor or name} has no image processor ({IMAGE_PROCESSOR[1]})"),
            _hash(_files(folder, SETTINGS + WEIGHTS) + lent),
        )

    def load_model(self) -> BlipForConditionalGeneration:
        """The model in f32, in evaluation mode, on the CPU. Raises ArtifactError where it is incomplete."""
        try:
            model, report = BlipForConditionalGeneration.from_pretrained(
                self.folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
            )
        except Exception as exc:  # of all kinds, as each field of config.json has a check of its own
            raise ArtifactError(f"{self.name} cannot be loaded: {inspection.reason(exc)}") from exc
        inspection.check_weights(model, report, self.name)
        inspection.check_settings(model, self.name)
        return model.eval()

    def load_tokenizer(self, model: BlipForConditionalGeneration) -> BertTokenizer:
        """The checkpoint's tokenizer. Raises ArtifactError where it is not the model's."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer.parent, trust_remote_code=False)
        except Exception as exc:  # the library has no better name for its own
            raise ArtifactError(f"{self.tokenizer} {_unreadable(exc)}") from exc
        inspection.check_tokenizer(tokenizer, model.config.text_config, self.tokenizer)
        return tokenizer

    def load_image_processor(self, model: BlipForConditionalGeneration) -> BlipImageProcessorPil:
        """The reference's preprocessing, through PIL. Raises ArtifactError where it is not the model's."""
        folder = self.image_processor.parent
        try:
            settings, _ = BlipImageProcessorPil.get_image_processor_dict(folder)
            processor = BlipImageProcessorPil.from_pretrained(folder)
        except Exception as exc:  # as above
            raise ArtifactError(f"{self.image_processor} {_unreadable(exc)}") from exc
        image_size = model.config.vision_config.image_size
        inspection.check_image_processor(processor, settings, image_size, self.image_processor)
        return processor

    def config(self, model: BlipForConditionalGeneration, dtype: DType) -> CheckpointConfig:
        """What the engine needs to know of it."""
        processor, vision, text = (
            self.load_image_processor(model),
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


def check_is_text(name: str) -> None:
    """Whether a name can be written down: libraries in other languages want UTF-8 where Linux takes any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ArtifactError(f"{name!a} is no UTF-8: give the folder another name, or set LC_ALL=C.UTF-8") from exc


def _folder(name: str, patterns: tuple[str, ...]) -> Path:
    """A folder, or what the hub has by that name."""
    if name and Path(name).is_dir():
        return Path(name)
    inspection.check_is_no_file(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as exc:
        raise ArtifactError(f"there is no folder {name or repr(name)}, and it is no hub name either") from exc
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise ArtifactError(
            f"there is no folder {name}, and it could not be downloaded from the Hugging Face hub: "
            "check the name, the network and, if it is private, HF_TOKEN, or download it elsewhere and give its folder"
        ) from exc


def _tokenizer(folder: Path) -> Path | None:
    return next((folder / name for name in TOKENIZER if (folder / name).exists()), None)


def _image_processor(folder: Path) -> Path | None:
    """The file that transformers reads it from. A processor_config.json need not have one."""
    whole, alone = (folder / name for name in IMAGE_PROCESSOR)
    if whole.exists() and "image_processor" in inspection.read_json(whole):
        return whole
    return alone if alone.exists() else None


def _borrow(find: Callable[[Path], Path | None], lender: Path | None, lack: str) -> Path:
    """A part that a checkpoint lacks, as training leaves it that was not given it to save."""
    found = find(lender) if lender else None
    if found is None:
        raise ArtifactError(
            f"{lack}: give the hub name or folder of one that has what this checkpoint was trained with, "
            f"as --processor {inspection.BASE}"
        )
    return found


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _unreadable(exc: Exception) -> str:
    return f"cannot be read ({inspection.reason(exc)}): copy or download it again"


def _short(name: str) -> str:
    return Path(name).resolve().name if Path(name).is_dir() else name
