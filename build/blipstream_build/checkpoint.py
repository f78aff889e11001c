# SPDX-License-Identifier: Apache-2.0
"""Load a BLIP in transformers' format, or say what is wrong with it."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from blipstream.command_line import option
from blipstream.config import CheckpointConfig, DType, MatchConfig, TextConfig, VisionConfig
from blipstream.errors import ArtifactError
from blipstream.files import DEMO_CHECKPOINT, DEMO_NAME
from blipstream_build.inspection import BASE, RETRIEVER, reason
from blipstream_build.inspection.files import check_files, check_folder, check_is_no_file, read_json

# What takes seconds to import is imported where it is used: `find` needs none of it
if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from blipstream_build.generation import GenerationDefaults

    Blip: TypeAlias = BlipForConditionalGeneration | BlipForImageTextRetrieval

WEIGHTS = ("*.safetensors",)  # *.bin are pickles, which can run any code when they are read
SETTINGS = ("*.json", "*.txt")
TOKENIZER, IMAGE_PROCESSOR = ("tokenizer.json", "vocab.txt"), ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A BLIP on disk. `find` checks its files; each part is loaded, and checked, on demand."""

    name: str  # the hub name, the folder's own name, or DEMO_NAME
    folder: Path
    tokenizer: Path  # the file, of the checkpoint or of the processor that was given
    image_processor: Path  # likewise
    revision: str  # hash of all files
    kind: str  # CAPTIONER or RETRIEVER

    @classmethod
    def find(cls, name: str, processor: str | None = None) -> "Checkpoint":
        """Find a checkpoint by folder or hub name. `processor`, one of these too, lends the parts that it lacks.

        Raises ArtifactError if there is no BLIP, or a part of it is missing.
        """
        folder = _folder(name, SETTINGS + WEIGHTS)
        kind = check_folder(folder, name)
        lender = _folder(processor, SETTINGS, f"for {option('processor')}, ") if processor else None
        if lender:
            check_files(lender)
        lent = _files(lender, SETTINGS) if lender else []
        tokenizer, image_processor = (find(folder) for find in (_tokenizer, _image_processor))
        if lender and tokenizer and image_processor:
            raise ArtifactError(
                f"{name} has a tokenizer and an image processor of its own: leave out {option('processor')}"
            )
        return cls(
            _short(name),
            folder,
            tokenizer or _borrow(_tokenizer, lender, f"{processor or name} has no tokenizer ({', '.join(TOKENIZER)})"),
            image_processor
            or _borrow(_image_processor, lender, f"{processor or name} has no image processor ({IMAGE_PROCESSOR[1]})"),
            hash_files(_files(folder, SETTINGS + WEIGHTS) + lent),
            kind,
        )

    @property
    def is_retriever(self) -> bool:
        """Whether it matches images and texts, and does not caption."""
        return self.kind == RETRIEVER

    def load_model(self) -> "Blip":
        """The model in f32, in evaluation mode, on the CPU. Raises ArtifactError if it is incomplete."""
        import torch
        import transformers
        from transformers import GenerationConfig

        from blipstream_build.generation import NAME
        from blipstream_build.inspection.model import check_settings, check_weights

        generation = self.folder / NAME
        try:
            if generation.exists():
                GenerationConfig.from_pretrained(self.folder)
        except Exception as exc:  # as many kinds as values can be wrong in
            raise ArtifactError(f"{generation} {_unreadable(exc)}") from exc
        try:
            model, report = getattr(transformers, self.kind).from_pretrained(
                self.folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report names them
            )
        except Exception as exc:  # transformers raises many kinds
            raise ArtifactError(f"{self.name} cannot be loaded: {reason(exc)}") from exc
        check_weights(model, report, self.name)
        check_settings(model, self.name)
        loaded: Blip = model.eval()
        return loaded

    def load_tokenizer(self, model: "Blip") -> "BertTokenizer":
        """The checkpoint's tokenizer. Raises ArtifactError if it does not belong to the model."""
        from transformers import AutoTokenizer

        from blipstream_build.inspection.tokenizer import check_tokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer.parent, trust_remote_code=False)
        except Exception as exc:  # tokenizers raises nothing more specific
            raise ArtifactError(f"{self.tokenizer} {_unreadable(exc)}") from exc
        check_tokenizer(tokenizer, model.config.text_config, self.tokenizer)
        return tokenizer

    def load_image_processor(self, model: "Blip") -> "BlipImageProcessorPil":
        """The reference's preprocessing, through PIL. Raises ArtifactError if it does not belong to the model."""
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        from blipstream_build.inspection.image_processor import check_image_processor

        folder = self.image_processor.parent
        try:
            settings, _ = BlipImageProcessorPil.get_image_processor_dict(folder)
            processor = BlipImageProcessorPil.from_pretrained(folder)
        except Exception as exc:  # transformers raises many kinds
            raise ArtifactError(f"{self.image_processor} {_unreadable(exc)}") from exc
        image_size = model.config.vision_config.image_size
        check_image_processor(processor, settings, image_size, self.image_processor)
        return processor

    def generation(self, model: "BlipForConditionalGeneration") -> "GenerationDefaults":
        """The options that its generation config sets: those of config.json that transformers kept, and the file's."""
        from blipstream_build.generation import NAME, generation_defaults

        file = self.folder / NAME
        settings = model.text_decoder.generation_config.to_diff_dict() | (read_json(file) if file.exists() else {})
        return generation_defaults(settings, model.config.text_config.max_position_embeddings)

    def config(self, model: "Blip", dtype: DType) -> CheckpointConfig:
        """What the engine must know about the checkpoint. Matching is taken to have an image encoder of its own."""
        from blipstream_build.convert import hash_of, vision_weights

        processor, vision, text = (
            self.load_image_processor(model),
            model.config.vision_config,
            model.config.text_config,
        )
        shape = VisionConfig(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            layer_norm_eps=vision.layer_norm_eps,
            image_mean=tuple(processor.image_mean),
            image_std=tuple(processor.image_std),
        )
        return CheckpointConfig(
            checkpoint=self.name,
            revision=self.revision,
            dtype=dtype,
            vision=replace(shape, weights_hash=hash_of(vision_weights(model.state_dict(), shape))),
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
                end_token_id=text.sep_token_id,  # generate() stops at [SEP]; BLIP does not use eos_token_id
            ),
            option_defaults={} if self.is_retriever else self.generation(model).used,
            matching=self._matching(model) if self.is_retriever else None,
        )

    def _matching(self, model: "BlipForImageTextRetrieval") -> MatchConfig:
        from blipstream_build.inspection.tokenizer import first_tokens

        text_token_id, pair_token_id = first_tokens(
            self.load_tokenizer(model), model.config.text_config, self.tokenizer
        )
        return MatchConfig(text_token_id, pair_token_id, model.config.image_text_hidden_size, "match_encoder")


def check_is_text(name: str) -> None:
    """Check that a name is UTF-8. Linux takes any bytes, but libraries in other languages do not.

    Raises ArtifactError if it is not.
    """
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ArtifactError(f"{name!a} is no UTF-8: give the folder another name, or set LC_ALL=C.UTF-8") from exc


def _folder(name: str, patterns: tuple[str, ...], purpose: str = "") -> Path:
    """A folder itself, or the hub's files of that name, downloaded. Errors begin with `purpose`."""
    if name and Path(name).is_dir():
        return Path(name)
    check_is_no_file(name)
    _check_may_be_on_hub(name, purpose)
    click.echo(f"looking for {name} on the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as exc:
        raise ArtifactError(
            f"{purpose}there is no folder {name or repr(name)}, and it is no hub name either: {_example(name)}"
        ) from exc
    except Exception as exc:  # the hub's library lets errors of its HTTP library through, as of a network's proxy
        known = isinstance(exc, (HfHubHTTPError, LocalEntryNotFoundError, OSError))
        raise ArtifactError(
            f"{purpose}there is no folder {name}, and it could not be downloaded from the Hugging Face hub"
            + ("" if known else f" ({reason(exc)})")
            + ": check the name, the network and, if it is private, HF_TOKEN, "
            "or download it elsewhere and give its folder"
        ) from exc


def _check_may_be_on_hub(name: str, purpose: str) -> None:
    """Check that a name is not written as the path of a folder. Raises ArtifactError if it is."""
    if not name.startswith(("/", "./", "../", "~")):
        return
    written_out = Path(os.path.expanduser(name))  # noqa: PTH111  # Path's own raises if there is no such user
    remedy = f"check the path, or give a hub name, such as {BASE}"
    if name.startswith("~") and written_out.is_dir():
        remedy = f"did you mean {written_out}?"
    raise ArtifactError(f"{purpose}there is no folder {name}: {remedy}")


def _example(name: str) -> str:
    """What a hub name looks like, made of one that is written as an address or a folder if possible."""
    bare = re.sub(r"^https?://huggingface\.co/|/+$", "", name)
    return f"did you mean {bare}?" if re.fullmatch(r"[\w.-]+/[\w.-]+", bare) else f"one is OWNER/NAME, such as {BASE}"


def _tokenizer(folder: Path) -> Path | None:
    return next((folder / name for name in TOKENIZER if (folder / name).exists()), None)


def _image_processor(folder: Path) -> Path | None:
    """The file that transformers reads the image processor from. A processor_config.json need not contain one."""
    whole, alone = (folder / name for name in IMAGE_PROCESSOR)
    if whole.exists() and "image_processor" in read_json(whole):
        return whole
    return alone if alone.exists() else None


def _borrow(find: Callable[[Path], Path | None], lender: Path | None, lack: str) -> Path:
    """A part from another checkpoint. Training saves no tokenizer or image processor unless it is given them."""
    found = find(lender) if lender else None
    if found is None:
        raise ArtifactError(
            f"{lack}: give the hub name or folder of one that has what this checkpoint was trained with, "
            f"as {option('processor', BASE)}"
        )
    return found


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def hash_files(files: list[Path]) -> str:
    """A hash of the names and the contents of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _unreadable(exc: Exception) -> str:
    return f"cannot be read ({reason(exc)}): copy or download it again"


def _short(name: str) -> str:
    if not Path(name).is_dir():
        return name
    folder = Path(name).resolve()
    return DEMO_NAME if folder == DEMO_CHECKPOINT else folder.name
