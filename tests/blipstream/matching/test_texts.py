# SPDX-License-Identifier: Apache-2.0
"""What is refused of texts, and in which words."""

from pathlib import Path

import pytest

from blipstream.config import CheckpointConfig
from blipstream.errors import InvalidInput
from blipstream.matching.texts import TextReader
from blipstream.options import MAX_TEXT
from blipstream.text.tokenizer import Tokenizer
from tests.support.retrieval import RetrievalReference

POSITIONS = 64  # of the demo


@pytest.fixture(scope="module")
def reader(matching_artifacts: Path) -> TextReader:
    folder = matching_artifacts / "matcher/1/openvino"
    config = CheckpointConfig.load(folder)
    return TextReader(Tokenizer(folder, config.text), config)


def test_ids_are_those_of_transformers(reader: TextReader, retrieval_reference: RetrievalReference) -> None:
    texts = ["two whales", "A DOG above a door!", "漢字 naïve"]
    assert reader.read([text.encode() for text in texts]) == [
        retrieval_reference.tokenizer(text)["input_ids"] for text in texts
    ]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "text must have at least one text, and it has none: send what the image may show"),
        ([b""], "text is empty: send words"),
        ([b"a", b" \n\t"], "text 2 of 2 is empty: send words, or leave it out"),
        ([b"a", b"\xff", b"a"], "text 2 of 3 must be UTF-8: invalid start byte at byte 0"),
        ([b"a " * 63], "text must have at most 62 tokens, not 63: shorten it, or set truncate"),
        ([b"a" * (MAX_TEXT + 1)], "text must have at most 4,096 characters, not 4,097: shorten it, or set truncate"),
        (["киты".encode()], "text must have a word that the model knows, and 'киты' is none"),
        (["киты!".encode()], "text must have a word that the model knows, and 'киты' is none"),
        ([b"a", "🐋🐋".encode()], "text 2 of 2 must have a word that the model knows, and '🐋🐋' is none"),
        ([b"w" * MAX_TEXT], f"text must have a word that the model knows, and '{'w' * 40}' is none"),
        ([b"a [SEP]"], "text must be of words, and '[SEP]' is a token of the model's own: leave it out"),
        ([b"[PAD]"], "text must be of words, and '[PAD]' is a token of the model's own: leave it out"),
    ],
)
def test_refusals(reader: TextReader, texts: list[bytes], sentence: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        reader.read(texts)
    assert str(refusal.value) == sentence


def test_truncate_keeps_the_ends(reader: TextReader) -> None:
    (longest,) = reader.read([b"a " * 62])
    (cut,) = reader.read([b"a " * 100], truncate=True)
    assert len(longest) == POSITIONS
    assert cut == longest
    assert reader.read([b"a cat"], truncate=True) == reader.read([b"a cat"])
    assert reader.read([b"a " * MAX_TEXT], truncate=True) == [cut]


def test_an_unknown_word_among_known_ones(reader: TextReader, retrieval_reference: RetrievalReference) -> None:
    """It is [UNK], whatever it is."""
    whales, anything = reader.read(["two киты".encode(), "two 🐋".encode()])
    assert whales == anything == retrieval_reference.tokenizer("two [UNK]")["input_ids"]
