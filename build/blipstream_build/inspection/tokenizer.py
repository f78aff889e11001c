# SPDX-License-Identifier: Apache-2.0
"""Checks of a tokenizer: whether it is the one that the model was trained with, as far as can be seen from outside."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import BertTokenizer, BlipTextConfig

from blipstream.errors import ArtifactError
from blipstream_build.inspection import BASE, SETTINGS

# BLIP's vocabulary is bert-base-uncased's and two more tokens. The sentence is the caption of BLIP's first picture
BERT_START, BERT_EXTRA = 30522, {30522: "[DEC]", 30523: "[ENC]"}
BERT_SENTENCE = "a woman sitting on the beach with her dog"
BERT_IDS = [1037, 2450, 3564, 2006, 1996, 3509, 2007, 2014, 3899]
KNOWN_SHARE = 0.9  # of the embeddings that must have a token: matrices are padded, by 2 of 30524 or by 34 of 512
READ_BACK_SHARE = 0.5  # of a vocabulary's words that must read back; pieces that continue a word never do
READ_BACK_WORDS = 200  # tried, of all


def check_tokenizer(tokenizer: BertTokenizer, text: BlipTextConfig, file: Path) -> None:
    """Check that a tokenizer, read from `file`, belongs to a text decoder."""
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


def first_tokens(tokenizer: BertTokenizer, text: BlipTextConfig, file: Path) -> tuple[int, int]:
    """The first token of a text that a retrieval checkpoint reads alone, and of one that it reads with an image.

    BLIP was trained with [CLS] and [ENC]. Published tokenizers lack [ENC], and the models have an embedding for it. A
    checkpoint that was trained otherwise, as by transformers' processor, says so: `enc_token_id` in its text_config.
    """
    backend = tokenizer.backend_tokenizer
    alone = backend.token_to_id("[CLS]")
    if alone is None:
        raise ArtifactError(f"{file} has no token [CLS], with which a text begins: copy or download it again")
    known = {number: token for number, token in BERT_EXTRA.items() if text.bos_token_id == BERT_START}
    pair = getattr(text, "enc_token_id", None)
    if pair is None:
        pair = backend.token_to_id("[ENC]")
    if pair is None:
        pair = next((number for number, token in known.items() if token == "[ENC]"), alone)  # noqa: S105
    if not isinstance(pair, int) or not 0 <= pair < text.vocab_size:
        raise ArtifactError(
            f"{SETTINGS} beside {file.name} has enc_token_id {pair}: expected one of the model's {text.vocab_size} "
            "embeddings"
        )
    return alone, pair


def _check_reads_itself(backend: Tokenizer, known: Sequence[int], file: Path) -> None:
    """Check that words read back as themselves.

    They do not if words and rules come from two tokenizers, or if a carriage return ends every word.
    """
    some = known[:: max(1, len(known) // READ_BACK_WORDS)]
    words = [(number, backend.decode([number], skip_special_tokens=True)) for number in some]
    words = [(number, word) for number, word in words if word]  # all but special ones
    good = sum(backend.encode(word, add_special_tokens=False).ids == [number] for number, word in words)
    if good < READ_BACK_SHARE * len(words):
        raise ArtifactError(
            f"{file} reads only {good} of {len(words)} of its own words as what they are: "
            "its files are damaged, or not from one tokenizer"
        )


def _check_is_bert(backend: Tokenizer, file: Path) -> None:
    has_own_words = backend.get_vocab_size(with_added_tokens=True) > BERT_START + len(BERT_EXTRA)  # maybe in capitals
    for sentence in (BERT_SENTENCE,) if has_own_words else (BERT_SENTENCE, BERT_SENTENCE.upper()):
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
