# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint's folder: whether it holds a whole BLIP, as far as its files show."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from blipstream.errors import ArtifactError
from blipstream_build.inspection import BASE, CAPTIONER, RETRIEVER, SETTINGS, listed, reason

MODEL_TYPE = "blip"
ADAPTER = "adapter_config.json"  # of PEFT
OBJECTS = (  # the JSON files that transformers reads
    SETTINGS,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"  # in one file, or the list of several
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
TRAINERS = ("optimizer", "rng_state", "scaler", "scheduler", "training_args")  # pickles that hold no weights
LFS_POINTER = b"version https://git-lfs"


def check_folder(folder: Path, name: str) -> str:
    """Check that a folder holds a whole BLIP, and return which kind: CAPTIONER or RETRIEVER."""
    check_files(folder)
    if (folder / ADAPTER).exists():
        raise ArtifactError(
            f"{name} is an adapter (it has {ADAPTER}), where a whole model is expected: merge it into its base by "
            "merge_and_unload(), and save the result by save_pretrained() to another folder"
        )
    settings = _read_settings(folder, name)
    kinds = settings.get("architectures")
    kind = str(kinds[0]) if isinstance(kinds, list) and kinds else "a model of unknown architecture"
    if kind not in (CAPTIONER, RETRIEVER):
        raise ArtifactError(
            f"{name} is {kind} (model type {settings.get('model_type')}), not a BLIP captioner: "
            f"expected {CAPTIONER}, as in {BASE}, or {RETRIEVER} for matching"
        )
    model_type = settings.get("model_type", MODEL_TYPE)
    if model_type != MODEL_TYPE:
        raise ArtifactError(
            f"{folder / SETTINGS} has model_type {str(model_type)[:40]!r}: expected {MODEL_TYPE!r}, as in {BASE}; "
            f"give it the {SETTINGS} that was saved with its weights"
        )
    if "quantization_config" in settings:
        raise ArtifactError(f"{name} has quantised weights: expected those that it was quantised from")
    for path in _weights(folder, name):
        check_whole(path)
    return kind


def check_files(folder: Path) -> None:
    """Check that every file can be read, except files of weights."""
    for path in _files(folder, ".json", ".txt"):
        _check_is_itself(path)
        if path.name in OBJECTS:
            read_json(path)


def check_is_no_file(name: str) -> None:
    """Check that a name does not lead to a file, because a folder is wanted."""
    path = Path(name)
    if not path.is_file():
        return
    raise ArtifactError(
        f"{name} is a file, where a folder is expected, with {SETTINGS}, {WEIGHTS}, tokenizer and image processor: "
        + (_convert_pickle() if path.suffix in PICKLES else "give the folder that it lies in")
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that must hold a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"{path} cannot be read as JSON ({reason(exc)}): copy or download it again") from exc
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} must be a JSON object, not {type(values).__name__}: copy or download it again")
    return values


def _read_settings(folder: Path, name: str) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.exists():
        within = sorted(each.parent.name for each in folder.glob(f"*/{SETTINGS}"))
        pickles = _pickles(folder)
        hint = f", only folders that have one ({listed(within)}): give one of these" if within else ""
        if pickles and not within:
            hint = f", only {listed(pickles)}: {_convert_pickle()}"
        raise ArtifactError(f"{name} is no checkpoint: {folder} has no {SETTINGS}{hint}")
    return read_json(path)


def _weights(folder: Path, name: str) -> list[Path]:
    """The files that transformers would read the weights from."""
    if os.path.lexists(folder / WEIGHTS):  # a broken link counts: reading it says what is wrong
        return [folder / WEIGHTS]
    if (folder / SHARDS).exists():
        shards = read_json(folder / SHARDS).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ArtifactError(f"{folder / SHARDS} names no weights: copy or download it again")
        files = {folder / str(file) for file in shards.values()}
        missing = sorted(file.name for file in files if not file.is_file())
        if missing:
            raise ArtifactError(
                f"{name} lacks {listed(missing)}, of the {len(files)} files that {SHARDS} names: copy or download them"
            )
        return sorted(files)
    others, pickles = [path.name for path in _files(folder, ".safetensors")], _pickles(folder)
    hint = "; save them anew by save_pretrained()"
    if others:
        hint = f", not {listed(others)}: give it that name if it holds the whole model"
    elif pickles:
        hint = f", not {listed(pickles)}: {_convert_pickle()}"
    raise ArtifactError(f"{name} has no weights: expected {WEIGHTS} in {folder}{hint}")


def check_whole(path: Path) -> None:
    """Check that a file of weights is there, whole, and in the format safetensors."""
    _check_is_itself(path)
    try:
        with safe_open(path, "np"):  # which spares the import of torch
            pass
    except (OSError, SafetensorError) as exc:
        raise ArtifactError(
            f"{path} is no whole safetensors file, at {path.stat().st_size} bytes ({reason(exc)}): "
            "copy or download it again"
        ) from exc


def _check_is_itself(path: Path) -> None:
    """Check that a file is there, and not what stands for it in a clone or a cache."""
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():  # reading a pipe would never end
            raise ArtifactError(f"{path} is no regular file, as is expected: copy or download it again")
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as exc:
        raise ArtifactError(f"{path} cannot be read: {exc.strerror}") from exc
    if start == LFS_POINTER:
        raise ArtifactError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")


def _pickles(folder: Path) -> list[str]:
    """The files that may hold weights as pickles, which can run any code when they are read."""
    return [path.name for path in _files(folder, *PICKLES) if not path.name.startswith(TRAINERS)]


def _files(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes)


def _convert_pickle() -> str:
    return (
        f"a pickle could run anything, so if you trust it, write it anew by save_pretrained() of {CAPTIONER}, "
        "or, if it is of BLIP's authors, by transformers' convert_blip_original_pytorch_to_hf.py"
    )
