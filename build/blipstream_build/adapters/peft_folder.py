# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter as PEFT saves it: its files are found, its settings checked, its weights read. PEFT is not needed."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.text.tokenizer import TOKENIZER_NAME
from blipstream_build.checkpoint import hash_files
from blipstream_build.inspection import SETTINGS, listed
from blipstream_build.inspection.files import ADAPTER, check_files, check_is_no_file, check_whole, read_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
DESCRIPTION = "blipstream.json"  # beside PEFT's files: what `blipstream finetune` knows of the base and the result
PREFIX = "base_model.model."  # of weights' names, which PEFT puts before those of the base
MERGE = "merge it into a checkpoint by PEFT's merge_and_unload(), and build that"
# What adapter_config.json says of the training, or of what the names of the weights show, too. `fan_in_fan_out` is for
# other layers than nn.Linear, which all of BLIP's are: PEFT ignores it then
HARMLESS = {
    *("auto_mapping", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "lora_dropout", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size"),
    *("revision", "target_modules", "task_type"),
}
READ = {
    *("alpha_pattern", "base_model_name_or_path", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r"),
    *("rank_pattern", "trainable_token_indices", "use_rslora"),
}
FAITHFUL_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # others of PEFT's change the base's weights


@dataclass(frozen=True)
class PeftFolder:
    """An adapter on disk. `find` checks its files and its settings; the weights are read on demand."""

    folder: Path
    settings: Mapping[str, Any]  # adapter_config.json
    base: str  # as blipstream.json has it, or else as PEFT does, which may be a path
    base_revision: str  # "" if nobody recorded it
    language: str
    metrics: Mapping[str, float]
    revision: str  # hash of all files that are read

    @classmethod
    def find(cls, folder: Path) -> "PeftFolder":
        """Find an adapter. Raises ArtifactError if there is none, or one that cannot be served."""
        check_is_no_file(str(folder))
        if not folder.is_dir():
            raise ArtifactError(f"there is no folder {folder}: give the one that PEFT's save_pretrained() has written")
        check_files(folder)
        if not (folder / ADAPTER).exists():
            raise ArtifactError(f"{folder} has no {ADAPTER}, as an adapter of PEFT's has{_what_else(folder)}")
        settings = read_json(folder / ADAPTER)
        _check_settings(settings, folder / ADAPTER)
        if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
            raise ArtifactError(
                f"{folder} has {PICKLE}, a pickle, which could run anything: if you trust it, load it in PEFT and save "
                f"it again by save_pretrained(), which writes {WEIGHTS}"
            )
        check_whole(folder / WEIGHTS)
        description = read_json(folder / DESCRIPTION) if (folder / DESCRIPTION).exists() else {}
        _check_description(description, folder / DESCRIPTION)
        files = [folder / name for name in (ADAPTER, WEIGHTS, DESCRIPTION, TOKENIZER_NAME)]
        return cls(
            folder,
            settings,
            description.get("base") or settings.get("base_model_name_or_path") or "",
            description.get("base_revision", ""),
            description.get("language", ""),
            description.get("metrics", {}),
            hash_files([file for file in files if file.exists()]),
        )

    def check_base(self, config: CheckpointConfig) -> None:
        """Check that it was made for a checkpoint. Raises ArtifactError if it was not."""
        if self.base_revision:
            if self.base_revision != config.revision:
                raise ArtifactError(
                    f"{self.folder} was made for {self.base}@{self.base_revision[:12]}, and the repository has "
                    f"{config.origin}: build the one that it was made for, or fine-tune again on what is there"
                )
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", self.base) and not Path(self.base).is_dir() and not self._names(config):
            raise ArtifactError(
                f"{self.folder} was made for {self.base}, and the repository has {config.origin}: build the one that "
                "it was made for"
            )

    def _names(self, config: CheckpointConfig) -> bool:
        """Whether the base is a checkpoint by name. One that was built from a folder has that folder's name alone."""
        return self.base == config.checkpoint or self.base.split("/")[-1] == config.checkpoint

    def read(self) -> "dict[str, Tensor]":
        """The weights as they are saved, by names as the base has them. Raises ArtifactError if one is not finite."""
        from safetensors.torch import load_file

        weights = load_file(self.folder / WEIGHTS)
        for name, weight in weights.items():
            if not name.startswith(PREFIX):
                raise ArtifactError(
                    f"{self.folder} names its weights as {name}: expected {PREFIX}..., as PEFT does around "
                    "BlipForConditionalGeneration"
                )
            if not bool(weight.isfinite().all()):
                raise ArtifactError(
                    f"{self.folder} has {name} with values that are no finite numbers: its training diverged, or the "
                    "file is damaged; take an earlier one"
                )
        return {name.removeprefix(PREFIX): weight for name, weight in weights.items()}

    def rank(self, module: str) -> int:
        """The rank of the term of a module, by the base's name of it."""
        return int(self._of_module("rank_pattern", module, self.settings.get("r", 8)))

    def scale(self, module: str) -> float:
        """What the product of a term's two matrices is multiplied by."""
        alpha, rank = self._of_module("alpha_pattern", module, self.settings.get("lora_alpha", 8)), self.rank(module)
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def trained_tokens(self) -> list[int]:
        """The ids of the tokens whose embeddings are saved alone, in their order."""
        found = self.settings.get("trainable_token_indices") or []
        return next(iter(found.values())) if isinstance(found, dict) else found

    def _of_module(self, patterns: str, module: str, default: float) -> float:
        """The value of the first pattern that the end of a module's name matches."""
        for pattern, value in (self.settings.get(patterns) or {}).items():
            if _compiled(pattern).match(module):
                return float(value)
        return default


def _what_else(folder: Path) -> str:
    """What to do about a folder that is no adapter."""
    if (folder / SETTINGS).exists():
        return ": it is a whole checkpoint, which `blipstream build` takes"
    within = sorted(each.parent.name for each in folder.glob(f"*/{ADAPTER}"))
    return f", only folders that have one ({listed(within)}): give one of these" if within else ""


def _check_settings(settings: Mapping[str, Any], file: Path) -> None:
    """Check that the settings are of plain LoRA, and say what this module reads of them."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ArtifactError(f"{file} is of the kind {str(kind)[:40]}, and only LORA can be served: {MERGE}")
    if settings.get("bias", "none") != "none":
        raise ArtifactError(f"{file} has bias {str(settings['bias'])[:40]!r}, and biases stay the base's: {MERGE}")
    if settings.get("init_lora_weights", True) not in FAITHFUL_STARTS:
        raise ArtifactError(
            f"{file} has init_lora_weights {str(settings['init_lora_weights'])[:40]!r}, which changes the base: save "
            "it again by save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for key, value in settings.items():
        if value and key not in HARMLESS | READ:
            raise ArtifactError(f"{file} has {key} {str(value)[:40]!r}, and only plain LoRA can be served: {MERGE}")
    for key in ("r", "lora_alpha"):
        if not _is_positive(settings.get(key, 8)):
            raise ArtifactError(f"{file} has {key} {str(settings[key])[:40]!r}: expected a positive number")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(key) or {}
        if not (isinstance(patterns, dict) and all(_is_pattern(each) for each in patterns)) or not all(
            map(_is_positive, patterns.values())
        ):
            raise ArtifactError(f"{file} has {key} {str(patterns)[:40]!r}: expected positive numbers by modules' names")
    tokens = settings.get("trainable_token_indices") or []
    lists = list(tokens.values()) if isinstance(tokens, dict) else [tokens]
    if len(lists) != 1 or not isinstance(lists[0], list) or not all(isinstance(each, int) for each in lists[0]):
        raise ArtifactError(
            f"{file} has trainable_token_indices {str(tokens)[:40]!r}: expected a list of those of the word embeddings"
        )
    if not isinstance(settings.get("base_model_name_or_path") or "", str):
        raise ArtifactError(f"{file} has a base_model_name_or_path that is no text: copy or download it again")


def _check_description(values: Mapping[str, Any], file: Path) -> None:
    for key in ("base", "base_revision", "language"):
        if not isinstance(values.get(key, ""), str):
            raise ArtifactError(f"{file} has {key} {str(values[key])[:40]!r}: expected a text")
    metrics = values.get("metrics", {})
    if not isinstance(metrics, dict) or not all(_is_number(each) for each in metrics.values()):
        raise ArtifactError(f"{file} has metrics {str(metrics)[:40]!r}: expected numbers by name")


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    )  # written so that NaN fails


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _compiled(pattern: str) -> re.Pattern[str]:
    """What finds the modules of a key of `rank_pattern`, as in PEFT's get_pattern_key()."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _is_pattern(value: str) -> bool:
    try:
        _compiled(value)
    except re.error:
        return False
    return True
