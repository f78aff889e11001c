# SPDX-License-Identifier: Apache-2.0
"""Prompts to token ids, token ids to captions."""

import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from blipstream.config import BUILD_HINT, TextConfig
from blipstream.errors import ArtifactError, InvalidInput
from blipstream.options import SHOWN

TOKENIZER_NAME = "tokenizer.json"
UNKNOWN = "[UNK]"  # the token of a word that the vocabulary has no pieces for
KANA_OR_IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # of languages without spaces
WORD = re.compile(rf"[{KANA_OR_IDEOGRAPH}][^\w\s]*|[^\s{KANA_OR_IDEOGRAPH}]+")


class Tokenizer:
    """The checkpoint's WordPiece tokenizer. Every prompt begins with BLIP's start token."""

    def __init__(self, folder: Path, config: TextConfig) -> None:
        """Load an artifact's tokenizer. Raises ArtifactError if there is none."""
        path = folder / TOKENIZER_NAME
        if not path.exists():
            raise ArtifactError(f"{path} is missing: {BUILD_HINT}")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._start_token_id = config.start_token_id
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._unknown = self._tokenizer.token_to_id(UNKNOWN)

    def encode(self, prompt: str) -> list[int]:
        """The ids of the start token and the prompt. No [SEP] follows, since the caption continues the prompt."""
        return [self._start_token_id, *self.encode_words(prompt)]

    def encode_words(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode_caption(self, caption: str, name: str = "a given caption") -> list[int]:
        """The ids of a finished caption, without the start token. Raises InvalidInput if a word of it is unknown.

        Errors call it `name`.
        """
        ids, special, _ = self._encode(caption)
        for word in special.values():
            raise InvalidInput(f"{name} must be of words that the model knows, and {word[:SHOWN]!r} is none")
        return ids

    def encode_text(self, text: str, name: str) -> list[int]:
        """The ids of a text, with [UNK] for words that are unknown. Errors call it `name`.

        Raises InvalidInput if no word of it is known, or one is a special token.
        """
        ids, special, rest = self._encode(text)
        for place, word in special.items():
            if ids[place] != self._unknown:
                raise InvalidInput(f"{name} must be of words, and {word!r} is a token of the model's own: leave it out")
        if special and not any(map(str.isalnum, rest)):  # punctuation is always known
            (word, *_) = special.values()
            raise InvalidInput(f"{name} must have a word that the model knows, and {word[:SHOWN]!r} is none")
        return ids

    def _encode(self, text: str) -> tuple[list[int], dict[int, str], str]:
        """The ids of a text, what became special tokens in it by their places, and the rest of it."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._special.isdisjoint(ids):
            return ids, {}, text
        words = [text[begin:end] for begin, end in encoding.offsets]
        special = {place: words[place] for place, token_id in enumerate(ids) if token_id in self._special}
        return ids, special, "".join(word for place, word in enumerate(words) if place not in special)

    def words(self, ids: Sequence[int]) -> tuple[list[str], list[int]]:
        """The words of the text of token ids, and for each token the number of its word, or -1 if it has none.

        Words are what spaces separate in the text, so punctuation belongs to the word that it touches. In Japanese and
        Chinese, each token is a word.
        """
        words = WORD.findall(self.decode(ids))
        numbers, last = [], len(words) - 1
        for end in range(len(ids), 0, -1):
            if ids[end - 1] in self._special:
                numbers.append(-1)
                continue
            # A text may get its spaces only when the next token is known. So no token's word comes after a later one's
            last = min(last, len(WORD.findall(self.decode(ids[:end]))) - 1)
            numbers.append(last)
        return _whole(words, numbers[::-1])


def _whole(words: list[str], numbers: list[int]) -> tuple[list[str], list[int]]:
    """Join what one token has made, of which only the last has the token's number."""
    ends = sorted({number for number in numbers if number >= 0})
    begins = [0, *(end + 1 for end in ends)]
    joined = ["".join(words[begin : end + 1]) for begin, end in zip(begins, ends, strict=False)]
    return joined, [ends.index(number) if number >= 0 else -1 for number in numbers]
