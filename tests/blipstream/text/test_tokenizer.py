# SPDX-License-Identifier: Apache-2.0
"""The tokenizer equals transformers'."""

from pathlib import Path

import pytest
import tokenizers

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.text.tokenizer import TOKENIZER_NAME, Tokenizer
from tests.reference import Reference

TEXTS = ["", "a picture of ", "A KEY", "it's a dog, isn't it?", "straw-berries 7", "naïve café", "漢字 🦊", "  a  b\n"]


@pytest.fixture(scope="module")
def tokenizer(f32_artifacts: Path) -> Tokenizer:
    folder = f32_artifacts / "decoder/1/artifact"
    return Tokenizer(folder, CheckpointConfig.load(folder).text)


@pytest.mark.parametrize("text", TEXTS)
def test_equals_transformers(tokenizer: Tokenizer, reference: Reference, text: str) -> None:
    theirs = reference.tokenizer(text)["input_ids"]
    theirs[0] = reference.model.config.text_config.bos_token_id  # generate() does the same, and drops [SEP]
    assert tokenizer.encode(text) == theirs[:-1]
    assert tokenizer.decode(theirs) == reference.tokenizer.decode(theirs, skip_special_tokens=True)


def test_rare_words_take_several_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("xylophone")) > 2


def test_missing_tokenizer(tmp_path: Path, f32_artifacts: Path) -> None:
    text = CheckpointConfig.load(f32_artifacts / "decoder/1/artifact").text
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing: .*blipstream build"):
        Tokenizer(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a dog above a door", ["a", "dog", "above", "a", "door"]),
        ("two whales, and a zebra-fish.", None),
        ("a dog's door isn't here", None),
        ('the "blue" door ( or two )', None),
        ("", []),
    ],
)
def test_words(tokenizer: Tokenizer, text: str, words: list[str] | None) -> None:
    """They are those of the text, and each token has one, in order."""
    ids = tokenizer.encode(text)
    found, numbers = tokenizer.words(ids)
    assert " ".join(found) == tokenizer.decode(ids)
    assert words is None or found == words
    assert numbers[0] == -1  # the start token
    assert numbers[1:] == sorted(numbers[1:])
    assert set(numbers[1:]) == set(range(len(found)))


def test_pieces_and_punctuation_belong_to_their_word(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a zebra, a dog's door")
    words, numbers = tokenizer.words(ids)
    assert words == ["a", "zebra,", "a", "dog", "'", "s", "door"]  # as the text has it
    pieces: dict[int, str] = {}
    for token_id, number in zip(ids[1:], numbers[1:], strict=True):
        pieces[number] = pieces.get(number, "") + tokenizer.decode([token_id]).removeprefix("##")
    assert list(pieces.values()) == words


def test_words_without_spaces(f32_artifacts: Path, tmp_path: Path) -> None:
    """A token is a word, with the punctuation behind it."""
    pieces = ["[UNK]", "りんご", "の", "木", "、", "red", "。"]
    model = tokenizers.models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "[UNK]")
    japanese = tokenizers.Tokenizer(model)
    japanese.decoder = tokenizers.decoders.Fuse()
    japanese.save(str(tmp_path / TOKENIZER_NAME))
    text = CheckpointConfig.load(f32_artifacts / "decoder/1/artifact").text
    words, numbers = Tokenizer(tmp_path, text).words([1, 2, 3, 4, 5, 6])
    assert words == ["りんご", "の", "木、", "red。"]
    assert numbers == [0, 1, 2, 2, 3, 3]
