# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with a checkpoint, told before anything is made of it: each part for itself, and with the others.

What transformers makes up where a file is missing or contradicts another, it would make up for the comparison, too.
So these are judged by what is known of BLIP, never by transformers' say. All raise ArtifactError.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipTextConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.errors import ArtifactError

CAPTIONER = "BlipForConditionalGeneration"
BASE = "Salesforce/blip-image-captioning-base"
SETTINGS = "config.json"
KIND = "blip"  # its model type
ADAPTER = "adapter_config.json"  # PEFT's
OBJECTS = (  # of all JSON files, those that transformers reads
    SETTINGS,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"  # the second names the files of the first's parts
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
TRAINERS = ("optimizer", "rng_state", "scaler", "scheduler", "training_args")  # pickles that are no weights
LFS_POINTER = b"version https://git-lfs"
WRAPPERS = {  # what puts a prefix before the names of weights, and how to get at the model within
    "module.": "save model.module instead of what DataParallel wraps around it",
    "_orig_mod.": "save model._orig_mod instead of what torch.compile wraps around it",
    "base_model.model.": "merge the adapters by merge_and_unload() and save that",
}
# BLIP's vocabulary is that of bert-base-uncased, and two tokens. The sentence is the caption of BLIP's first picture
BERT_START, BERT_EXTRA = 30522, {30522: "[DEC]", 30523: "[ENC]"}
BERT_SENTENCE = "a woman sitting on the beach with her dog"
BERT_IDS = [1037, 2450, 3564, 2006, 1996, 3509, 2007, 2014, 3899]
KNOWN_SHARE = 0.9  # of the embeddings that have a token: matrices are padded, by 2 of 30524 or by 34 of 512
READ_BACK_SHARE = 0.5  # of a vocabulary's own words; those that only continue others cannot be
READ_BACK_WORDS = 200


def check_folder(folder: Path, name: str) -> None:
    """Whether a folder holds a whole BLIP captioner, as far as can be seen without loading it."""
    check_files(folder)
    if (folder / ADAPTER).exists():
        raise ArtifactError(
            f"{name} is an adapter (it has {ADAPTER}), where a whole model is expected: merge it into its base by "
            "merge_and_unload(), and save the result by save_pretrained() to another folder"
        )
    settings = read_settings(folder, name)
    kinds = settings.get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and kinds else "a model of unknown architecture"
    if kind != CAPTIONER:
        raise ArtifactError(
            f"{name} is {kind} (model type {settings.get('model_type')}), not a BLIP captioner: "
            f"expected {CAPTIONER}, as in {BASE}"
        )
    model_type = settings.get("model_type", KIND)
    if model_type != KIND:
        raise ArtifactError(
            f"{folder / SETTINGS} has model_type {str(model_type)[:40]!r}: expected {KIND!r}, as in {BASE}; "
            f"give it the {SETTINGS} that was saved with its weights"
        )
    if "quantization_config" in settings:
        raise ArtifactError(f"{name} has quantised weights: expected those that it was quantised from")
    for path in _weights(folder, name):
        _check_whole(path)


def check_files(folder: Path) -> None:
    """Whether all files but those of weights can be read."""
    for path in _files(folder, ".json", ".txt"):
        check_is_itself(path)
        if path.name in OBJECTS:
            read_json(path)


def check_is_itself(path: Path) -> None:
    """Whether a file is there, not what stands for it in a clone or a cache."""
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():  # a pipe would keep its reader waiting
            raise ArtifactError(f"{path} is no regular file, as is expected: copy or download it again")
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as exc:
        raise ArtifactError(f"{path} cannot be read: {exc.strerror}") from exc
    if start == LFS_POINTER:
        raise ArtifactError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """A checkpoint's config.json."""
    path = folder / SETTINGS
    if not path.exists():
        within = sorted(each.parent.name for each in folder.glob(f"*/{SETTINGS}"))
        pickles = _pickles(folder)
        hint = f", only folders that have one ({_some(within)}): give one of these" if within else ""
        if pickles and not within:
            hint = f", only {_some(pickles)}: {_anew()}"
        raise ArtifactError(f"{name} is no checkpoint: {folder} has no {SETTINGS}{hint}")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"{path} cannot be read as JSON ({reason(exc)}): copy or download it again") from exc
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} must be a JSON object, not {type(values).__name__}: copy or download it again")
    return values


def check_is_no_file(name: str) -> None:
    """Whether a name is that of a file, where a folder is wanted."""
    path = Path(name)
    if not path.is_file():
        return
    raise ArtifactError(
        f"{name} is a file, where a folder is expected, with {SETTINGS}, {WEIGHTS}, tokenizer and image processor: "
        + (_anew() if path.suffix in PICKLES else "give the folder that it lies in")
    )


def _weights(folder: Path, name: str) -> Iterable[Path]:
    """The files that transformers would read them from."""
    if os.path.lexists(folder / WEIGHTS):  # a link to nothing is told as such
        return [folder / WEIGHTS]
    if (folder / SHARDS).exists():
        shards = read_json(folder / SHARDS).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ArtifactError(f"{folder / SHARDS} names no weights: copy or download it again")
        files = {folder / str(file) for file in shards.values()}
        missing = sorted(file.name for file in files if not file.is_file())
        if missing:
            raise ArtifactError(
                f"{name} lacks {_some(missing)}, of the {len(files)} files that {SHARDS} names: copy or download them"
            )
        return sorted(files)
    others, pickles = [path.name for path in _files(folder, ".safetensors")], _pickles(folder)
    hint = "; save them anew by save_pretrained()"
    if others:
        hint = f", not {_some(others)}: give it that name if it holds the whole model"
    elif pickles:
        hint = f", not {_some(pickles)}: {_anew()}"
    raise ArtifactError(f"{name} has no weights: expected {WEIGHTS} in {folder}{hint}")


def _check_whole(path: Path) -> None:
    check_is_itself(path)
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as exc:
        raise ArtifactError(
            f"{path} is no whole safetensors file, at {path.stat().st_size} bytes ({reason(exc)}): "
            "copy or download it again"
        ) from exc


def check_weights(model: BlipForConditionalGeneration, report: dict[str, Any], name: str) -> None:
    """Whether a loaded model has all of its weights and no more, as transformers reports it, and numbers in them."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    for key in unexpected:
        prefix = next((prefix for prefix in WRAPPERS if key.startswith(prefix)), "")
        if prefix or ".lora_" in key or ".base_layer." in key:
            remedy = WRAPPERS[prefix or "base_model.model."]
            raise ArtifactError(f"{name} names its weights as {key}: {remedy}")
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise ArtifactError(
            f"{name} has {key} in shape {list(found)} where its {SETTINGS} expects {list(expected)}: "
            f"give it the {SETTINGS} that was saved with its weights"
        )
    if missing:
        raise ArtifactError(
            f"{name} lacks {len(missing)} of the weights that its {SETTINGS} expects, as {_some(missing)}: "
            "save the whole model by save_pretrained()"
        )
    parts = ("vision_model.", "text_decoder.")  # other parts, as for matching, do no harm
    left = [key for key in unexpected if key.startswith(parts) and not key.endswith("position_ids")]
    if left:
        raise ArtifactError(
            f"{name} has {len(left)} weights for which its {SETTINGS} has no place, as {_some(left)}: "
            f"give it the {SETTINGS} that was saved with its weights"
        )
    for key, weight in model.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise ArtifactError(
                f"{name} has {key} with values that are no finite numbers: its training diverged, or the file is "
                "damaged; take an earlier one"
            )
    decoder = model.text_decoder
    if not torch.equal(decoder.cls.predictions.decoder.weight, decoder.bert.embeddings.word_embeddings.weight):
        raise ArtifactError(
            f"{name} has a head of its own, where its word embeddings are expected in that place, as in all of BLIP's: "
            "train it with tie_word_embeddings"
        )


def check_settings(model: BlipForConditionalGeneration, name: str) -> None:
    """Whether the model is computed as all of BLIP's are, and its special tokens have embeddings."""
    vision, text = model.config.vision_config, model.config.text_config
    for part in (vision, text):
        if part.hidden_act != "gelu":
            raise ArtifactError(f"{name} uses the activation {part.hidden_act}: expected gelu, as all of BLIP's do")
    if not isinstance(vision.image_size, int):
        raise ArtifactError(f"{name} has image_size {vision.image_size}: expected one number, for both sides")
    ids = {key: getattr(text, key) for key in ("bos_token_id", "sep_token_id", "pad_token_id")}
    for key, value in ids.items():
        if not isinstance(value, int) or not 0 <= value < text.vocab_size:
            raise ArtifactError(
                f"{name} has {key} {value} in its {SETTINGS}: expected one of its {text.vocab_size} embeddings"
            )
    if len(set(ids.values())) < len(ids):
        shown = ", ".join(f"{key} {value}" for key, value in ids.items())
        raise ArtifactError(f"{name} has {shown} in its {SETTINGS}: expected three different tokens")


def check_tokenizer(tokenizer: BertTokenizer, text: BlipTextConfig, file: Path) -> None:
    """Whether a tokenizer is the one that a model was trained with, as far as can be told from outside."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ArtifactError(f"{file} is read by Python alone: expected tokenizer.json or vocab.txt of a fast tokenizer")
    known = sorted(backend.get_vocab(with_added_tokens=True).values())
    if known[-1] >= text.vocab_size:
        raise ArtifactError(
            f"{file} has tokens up to {known[-1]}, and the model has embeddings for {text.vocab_size}: "
            "give the tokenizer that it was trained with, or train it after resize_token_embeddings()"
        )
    if len(known) < KNOWN_SHARE * text.vocab_size:
        raise ArtifactError(
            f"{file} has {len(known)} tokens for the model's {text.vocab_size} embeddings: "
            "give the tokenizer that it was trained with"
        )
    for key in ("bos_token_id", "sep_token_id", "pad_token_id"):
        text_of_it = backend.decode([getattr(text, key)], skip_special_tokens=True)
        if text_of_it:
            raise ArtifactError(
                f"{file} reads {key} {getattr(text, key)} of {SETTINGS} as {text_of_it[:40]!r}: "
                "expected a special token, as captions would say it aloud"
            )
    _check_reads_itself(backend, known, file)
    if text.bos_token_id == BERT_START:
        _check_is_bert(backend, file)


def _check_reads_itself(backend: Any, known: Sequence[int], file: Path) -> None:  # noqa: ANN401
    """As it would not if its words and its rules came from two, or if every word ended in a carriage return."""
    some = known[:: max(1, len(known) // READ_BACK_WORDS)]
    words = [(number, backend.decode([number], skip_special_tokens=True)) for number in some]
    words = [(number, word) for number, word in words if word]  # all but special ones
    good = sum(backend.encode(word, add_special_tokens=False).ids == [number] for number, word in words)
    if good < READ_BACK_SHARE * len(words):
        raise ArtifactError(
            f"{file} reads only {good} of {len(words)} of its own words as what they are: "
            "its files are damaged, or not from one tokenizer"
        )


def _check_is_bert(backend: Any, file: Path) -> None:  # noqa: ANN401
    for sentence in (BERT_SENTENCE, BERT_SENTENCE.upper()):
        ids = backend.encode(sentence, add_special_tokens=False).ids
        if ids != BERT_IDS:
            raise ArtifactError(
                f"{file} reads {sentence!r} as {str(ids[:9])[:60]}, not {BERT_IDS}: a model that starts "
                f"with token {BERT_START} needs bert-base-uncased's, as in {BASE}"
            )
    for number, token in BERT_EXTRA.items():
        found = backend.id_to_token(number)
        if found not in (None, token):
            raise ArtifactError(
                f"{file} has {found[:40]!r} as token {number}, which is BLIP's {token}: "
                "add tokens behind it, and train their embeddings there"
            )


def check_image_processor(
    processor: BlipImageProcessorPil, settings: dict[str, Any], image_size: int, file: Path
) -> None:
    """Whether it makes of an image what BLIP's does, in the model's size. `settings` are what the file says."""
    kind = settings.get("image_processor_type")
    if kind is not None and not str(kind).startswith("Blip"):
        raise ArtifactError(f"{file} is of a {str(kind)[:40]}: expected a BlipImageProcessor, as in {BASE}")
    sides = (processor.size.get("height"), processor.size.get("width"))
    if sides != (image_size, image_size):
        found = f"{sides[1]} x {sides[0]} pixels" if all(sides) else str(dict(processor.size))
        raise ArtifactError(
            f"{file} resizes images to {found}, and the model takes {image_size} x {image_size}: "
            f'write "size": {{"height": {image_size}, "width": {image_size}}} there if that is what it was trained with'
        )
    for key in ("image_mean", "image_std"):
        values = getattr(processor, key)
        if settings.get(key) is None:  # transformers would make it up
            raise ArtifactError(
                f"{file} has no {key}: expected three numbers between 0 and 1, for red, green and blue; "
                f'write "{key}": {list(values)} there if the model was trained with BLIP\'s'
            )
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(_is_share(each, key) for each in values):
            raise ArtifactError(
                f"{file} has {key} {str(values)[:40]}: expected three numbers between 0 and 1, for red, green and blue"
            )
    expected = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": Image.Resampling.BICUBIC,
    }
    for key, value in expected.items():
        found = getattr(processor, key)
        if found != value:
            raise ArtifactError(
                f"{file} has {key} {str(found)[:40]}: expected {json.dumps(value)}, as all of BLIP's have"
            )
    if not abs(255 * processor.rescale_factor - 1) < 1e-6:
        raise ArtifactError(
            f"{file} has rescale_factor {processor.rescale_factor}: expected 1/255, as all of BLIP's have"
        )


def _is_share(value: object, key: str) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1 and (value > 0 or key == "image_mean")


def _pickles(folder: Path) -> list[str]:
    """Files that may hold weights in a form that could run code."""
    return [path.name for path in _files(folder, *PICKLES) if not path.name.startswith(TRAINERS)]


def _files(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes)


def _anew() -> str:
    return (
        f"a pickle could run anything, so if you trust it, write it anew by save_pretrained() of {CAPTIONER}, "
        "or, if it is of BLIP's authors, by transformers' convert_blip_original_pytorch_to_hf.py"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def reason(exc: Exception) -> str:
    """An error of others in one line that is not too long."""
    return " ".join(str(exc).split())[:120]
