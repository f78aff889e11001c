# SPDX-License-Identifier: Apache-2.0
"""PEFT's weights under the engine's names: terms of linear layers, and rows of added words."""

import re
from math import sqrt
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from blipstream.config import TextConfig
from blipstream.errors import ArtifactError
from blipstream.text.tokenizer import TOKENIZER_NAME
from blipstream_build.adapters.peft_folder import MERGE, PeftFolder
from blipstream_build.convert import Weights
from blipstream_build.inspection.files import ADAPTER

LAYER = re.compile(r"text_decoder\.bert\.encoder\.layer\.(\d+)\.(.+)")
LINEAR = {
    "attention.self.query": "self_query",
    "attention.self.key": "self_key",
    "attention.self.value": "self_value",
    "attention.output.dense": "self_output",
    "crossattention.self.query": "cross_query",
    "crossattention.self.key": "cross_key",
    "crossattention.self.value": "cross_value",
    "crossattention.output.dense": "cross_output",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
}
HEAD_DENSE = "text_decoder.cls.predictions.transform.dense"
EMBEDDING = "text_decoder.bert.embeddings.word_embeddings"
TRAINED_ROWS = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
HEAD = "text_decoder.cls.predictions.decoder"  # its matrix is that of the embedding
TERM = re.compile(r"(.+)\.lora_([AB])\.weight")


def adapter_weights(adapter: PeftFolder, word_embedding: Tensor, config: TextConfig) -> Weights:
    """The weights of an adapter's artifact, in f32.

    Of a linear layer X with a term of rank r, `X.down` [r, in] and `X.up` [out, r], which holds the scale; X is as
    TextDecoder names it, with the query, key and value of self-attention apart. Of W added words, `word_embedding`
    [W, h] and `head_bias` [W]. The argument is the base's word embedding, [V, h].

    Raises ArtifactError if the adapter changes anything else, or does not fit.
    """
    theirs = adapter.read()
    converted = _words(adapter, theirs, word_embedding, config)
    for name, weight in theirs.items():
        found = TERM.fullmatch(name)
        linear = _linear(found[1], config) if found else None
        if not (found and linear):
            raise ArtifactError(f"{adapter.folder} {_what_it_changes(name)}: {MERGE}")
        module, part = found.groups()
        rank, (ours, outputs, inputs) = adapter.rank(module), linear
        expected = [rank, inputs] if part == "A" else [outputs, rank]
        if list(weight.shape) != expected:
            raise ArtifactError(
                f"{adapter.folder} has {name} in shape {list(weight.shape)}, where its {ADAPTER} and the base expect "
                f"{expected}: is it for another size of BLIP, or are its files not of one training?"
            )
        if f"{module}.lora_{'B' if part == 'A' else 'A'}.weight" not in theirs:
            raise ArtifactError(f"{adapter.folder} has half a term, {name}: copy or download it again")
        if part == "A":
            converted[f"{ours}.down"] = weight.float()
            continue
        head_size = config.hidden_size // config.num_heads
        folded = sqrt(head_size) if ours.endswith("cross_query") else 1  # as in the engine's own cross_query
        converted[f"{ours}.up"] = weight.float() * (adapter.scale(module) / folded)
    if not converted:
        raise ArtifactError(f"{adapter.folder} has no weights: expected the terms of LoRA")
    return converted


def check_tokenizer(adapter: PeftFolder, base: Path, config: TextConfig, num_words: int) -> None:
    """Check that an adapter's tokenizer begins with that of its base, a file, and knows no more than `num_words` more.

    Raises ArtifactError if it does not, or if there is none and there are words.
    """
    file = adapter.folder / TOKENIZER_NAME
    if not file.exists():
        if num_words:
            raise ArtifactError(
                f"{adapter.folder} adds {num_words} words, and has no {TOKENIZER_NAME} that knows them: save the "
                "tokenizer there, too"
            )
        return
    theirs, ours = _load(file), _load(base)
    for token, number in sorted(ours.get_vocab(with_added_tokens=True).items(), key=lambda each: each[1]):
        found = theirs.id_to_token(number)
        if found != token:
            raise ArtifactError(
                f"{file} has {str(found)[:40]!r} as token {number}, where its base has {token[:40]!r}: expected the "
                "base's tokens, and new ones behind them"
            )
    special = {number for number, token in theirs.get_added_tokens_decoder().items() if token.special}
    for number, added in ours.get_added_tokens_decoder().items():
        if added.special and number not in special:
            raise ArtifactError(f"{file} has {added.content[:40]!r} as a word, which is a special token of the base's")
    last = max(theirs.get_vocab(with_added_tokens=True).values())
    if last >= config.vocab_size + num_words:
        raise ArtifactError(
            f"{file} has tokens up to {last}, and there are embeddings up to {config.vocab_size + num_words - 1}: "
            "train those of all added tokens"
        )


def _load(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as exc:  # tokenizers raises nothing more specific
        raise ArtifactError(f"{file} cannot be read: copy or download it again") from exc


def _linear(module: str, config: TextConfig) -> tuple[str, int, int] | None:
    """The engine's name of a linear layer of the text decoder, its outputs and its inputs. None if it is none."""
    width = config.hidden_size
    if module == HEAD_DENSE:
        return "head_dense", width, width
    found = LAYER.fullmatch(module)
    if not found or found[2] not in LINEAR or int(found[1]) >= config.num_layers:
        return None
    ours = LINEAR[found[2]]
    inputs = {
        "cross_key": config.encoder_hidden_size,
        "cross_value": config.encoder_hidden_size,
        "fc2": config.intermediate_size,
    }
    outputs = config.intermediate_size if ours == "fc1" else width
    return f"layers.{found[1]}.{ours}", outputs, inputs.get(ours, width)


def _words(adapter: PeftFolder, theirs: dict[str, Tensor], base: Tensor, config: TextConfig) -> Weights:
    """The rows of added words, which are taken out of `theirs`. PEFT saves them alone, or the whole embedding."""
    first, width = config.vocab_size, config.hidden_size
    if (rows := theirs.pop(TRAINED_ROWS, None)) is not None:
        ids = adapter.trained_tokens()
    elif (whole := theirs.pop(f"{EMBEDDING}.weight", None)) is not None:
        if adapter.settings.get("modules_to_save") and not adapter.settings.get("ensure_weight_tying"):
            raise ArtifactError(
                f"{adapter.folder} has trained the word embeddings apart from the head, and in BLIP the two are one "
                "matrix: train the added tokens by trainable_token_indices"
            )
        if whole.shape[1:] != base.shape[1:] or not torch.equal(whole[:first], base.to(whole.dtype)):
            raise ArtifactError(f"{adapter.folder} trains words of the base: {MERGE}")
        rows, ids = whole[first:], list(range(first, len(whole)))
    else:
        return {}
    if min(ids, default=first) < first:
        raise ArtifactError(f"{adapter.folder} trains words of the base: {MERGE}")
    if rows.shape[1:] != (width,) or sorted(ids) != list(range(first, first + len(rows))):
        raise ArtifactError(
            f"{adapter.folder} has embeddings in shape {list(rows.shape)} for {len(ids)} tokens: expected {width} "
            f"numbers for each token that it adds, from {first} on"
        )
    rows = rows[sorted(range(len(ids)), key=ids.__getitem__)].float()
    # resize_token_embeddings() gives an added token the bias 0, and LoRA trains none
    return {"word_embedding": rows, "head_bias": torch.zeros(len(rows))} if len(rows) else {}


def _what_it_changes(name: str) -> str:
    """Where a weight belongs that no adapter here can have, by the base's name of it."""
    if name.startswith("vision_model."):
        return f"has terms in the image encoder ({name}), which all captions share"
    if name.startswith((EMBEDDING, HEAD)):
        return f"changes words of the base ({name})"
    return f"has {name}, which is of no linear layer of the text decoder"
