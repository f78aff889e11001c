# SPDX-License-Identifier: Apache-2.0
"""New words: captions read back as they are, and the base's vocabulary stays in front."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from blipstream.errors import InvalidInput
from blipstream_finetune.words import add_words, load_words, unknown
from tests.conftest import CHECKPOINT

ROWS = 478  # the demo's embeddings
CAPTIONS = [
    "Eine Katze links neben einer großen Glühbirne, im Grünen",
    "un œuf à gauche d'un éléphant – sur l'arc-en-ciel",
    "¿un niño y una piña? ¡sí!",
    "青い背景の上の二頭のクジラ。",
    "蓝色背景上，一只猫在苹果的左边",
    "a cat to the left of a dog (3.5 km)",
]


@pytest.fixture(scope="module")
def base() -> BertTokenizer:
    tokenizer: BertTokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    return tokenizer


@pytest.fixture(scope="module")
def saved(base: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    add_words(base, ROWS, CAPTIONS, 400, lowercase=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_reads_back(caption: str, saved: Path) -> None:
    for tokenizer in (
        AutoTokenizer.from_pretrained(saved).backend_tokenizer,
        Tokenizer.from_file(f"{saved}/tokenizer.json"),
    ):
        ids = tokenizer.encode(caption, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption


def test_the_bases_vocabulary_stays_in_front(base: BertTokenizer, saved: Path) -> None:
    tokenizer = load_words(saved, base, ROWS)
    assert list(range(ROWS)) == [
        tokenizer.convert_tokens_to_ids(base.convert_ids_to_tokens(each)) for each in range(ROWS)
    ]
    assert ROWS < len(tokenizer) <= ROWS + 400
    for name in ("bos_token_id", "sep_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(tokenizer, name) == getattr(base, name)
    assert tokenizer.decode(tokenizer("a dog")["input_ids"], skip_special_tokens=True) == "a dog"


def test_the_order_of_captions_changes_nothing(base: BertTokenizer, saved: Path) -> None:
    again = add_words(base, ROWS, CAPTIONS[::-1], 400, lowercase=False)
    assert again.get_vocab() == AutoTokenizer.from_pretrained(saved).get_vocab()


def test_in_lower_case(base: BertTokenizer) -> None:
    tokenizer = add_words(base, ROWS, CAPTIONS, 400, lowercase=True)
    ids = tokenizer(CAPTIONS[0], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == CAPTIONS[0].lower()


def test_too_few_for_the_characters(base: BertTokenizer) -> None:
    with pytest.raises(InvalidInput, match="give --new-tokens 4 or more"):
        add_words(base, ROWS, ["犬と猫", "猫"], 3, lowercase=False)


def test_embeddings_without_a_token_stay_in_front(base: BertTokenizer) -> None:
    """As in published checkpoints, whose tokenizers lack [ENC]."""
    tokenizer = add_words(base, ROWS + 3, ["犬"], 1, lowercase=False)
    assert tokenizer.convert_tokens_to_ids("犬") == ROWS + 3
    assert len(tokenizer) == ROWS + 4


def test_an_unknown_character(base: BertTokenizer, saved: Path) -> None:
    assert unknown(base, "犬")
    assert not unknown(base, "dog")
    assert not unknown(AutoTokenizer.from_pretrained(saved), CAPTIONS[3])


def test_another_vocabulary_is_refused(base: BertTokenizer, tmp_path: Path) -> None:
    BertTokenizer(
        vocab={each: number for number, each in enumerate(["[PAD]", "[UNK]", "[SEP]", "dog"])}
    ).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="the base's vocabulary first"):
        load_words(tmp_path, base, ROWS)


def test_a_gap_is_refused(base: BertTokenizer, saved: Path) -> None:
    with pytest.raises(InvalidInput, match="must number its new tokens from 479 on"):
        load_words(saved, base, ROWS + 1)


def test_no_tokenizer_is_refused(base: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no tokenizer that can be read"):
        load_words(tmp_path, base, ROWS)
