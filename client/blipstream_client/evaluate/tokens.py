# SPDX-License-Identifier: Apache-2.0
"""Texts -> tokens, as the metrics count them."""

import unicodedata
from collections.abc import Sequence
from importlib import import_module

from blipstream_client.evaluate.java import answers

ENGLISH = "en"
PTB, WORDS, CHARACTERS = "ptb", "words", "characters"
DESCRIPTIONS = {
    PTB: "COCO's own for English: PTB tokens in lower case, without punctuation",
    WORDS: "words in lower case, without punctuation",
    CHARACTERS: "characters, without punctuation",
}
WITHOUT_SPACES = {"ja", "km", "lo", "my", "th", "yue", "zh"}  # languages that put none between words
MODULE = "pycocoevalcap.tokenizer.ptbtokenizer"
PTB_JAR = "stanford-corenlp-3.4.1.jar"


def tokenization_of(language: str) -> str:
    """How a language is split: PTB, WORDS or CHARACTERS. `language` is a tag of BCP 47, such as pt-BR."""
    primary = language.lower().partition("-")[0]
    return PTB if primary == ENGLISH else CHARACTERS if primary in WITHOUT_SPACES else WORDS


def tokenized(texts: Sequence[str], tokenization: str) -> list[str]:
    """The tokens of each text, with a space between two. Raises BlipstreamError if Java fails."""
    if tokenization == PTB:
        return _ptb(texts)
    words = map(_words, texts)
    return [" ".join(each) if tokenization == WORDS else " ".join("".join(each)) for each in words]


def _words(text: str) -> list[str]:
    """Punctuation and symbols part words, marks such as accents do not."""
    normal = unicodedata.normalize("NFC", text).lower()
    return "".join(" " if unicodedata.category(each)[0] in "PS" else each for each in normal).split()


def _ptb(texts: Sequence[str]) -> list[str]:
    """What PTBTokenizer of `pycocoevalcap` does, but for its file, which it writes where it is installed."""
    program = ["-cp", PTB_JAR, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = answers("The PTB tokenizer", MODULE, [*program, "-encoding", "UTF-8"], [*map(_one_line, texts)])
    punctuation = set(import_module(MODULE).PUNCTUATIONS)
    return [" ".join(token for token in line.split() if token not in punctuation) for line in lines]


def _one_line(text: str) -> str:
    return " ".join(text.split())
