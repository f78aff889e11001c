# SPDX-License-Identifier: Apache-2.0
"""The texts of a request, as tokens. What the model cannot read is refused, and nothing is cut unasked."""

from collections.abc import Sequence

from blipstream.config import CheckpointConfig
from blipstream.errors import InvalidInput
from blipstream.options import MAX_GRADIENTS, MAX_TEXT
from blipstream.text.tokenizer import Tokenizer

SPECIAL_TOKENS = 2  # the first one, and [SEP]
ONE = "text"  # what errors call the only text of a request
TOO_LONG = "shorten it, or set truncate"
Ids = list[int]


class TextReader:
    """Texts to token ids, [CLS] first and [SEP] last."""

    def __init__(self, tokenizer: Tokenizer, config: CheckpointConfig) -> None:
        self._tokenizer = tokenizer
        self._first, self._last = config.match_config.text_token_id, config.text.end_token_id
        self._longest = config.text.max_positions - SPECIAL_TOKENS

    def read(self, texts: Sequence[bytes], *, truncate: bool = False) -> list[Ids]:
        """The ids of each text. With `truncate`, the first that the model has positions for.

        Raises InvalidInput if there is no text, or one is empty, too long, not UTF-8, or of unknown words alone.
        """
        if not texts:
            raise InvalidInput("text must have at least one text, and it has none: send what the image may show")
        names = [f"text {number} of {len(texts)}" for number in range(1, len(texts) + 1)] if texts[1:] else [ONE]
        remedy = "" if truncate else TOO_LONG
        return [self._read(text, name, self._longest, remedy) for text, name in zip(texts, names, strict=True)]

    def read_caption(self, encoded: bytes) -> Ids:
        """The ids of a caption, or of as much of it as the model has positions for. Empty if it has no words."""
        return self._framed(self._tokenizer.encode_words(encoded.decode(errors="replace")[:MAX_TEXT]))

    def read_explained(self, encoded: bytes) -> Ids:
        """The ids of a text that is to be explained.

        Raises InvalidInput as `read` does, also if a word is unknown, or there are too many tokens for gradients.
        """
        ids = self._read(encoded, ONE, min(MAX_GRADIENTS, self._longest), "shorten it")
        self._tokenizer.encode_caption(encoded.decode(), ONE)
        return ids

    def words(self, ids: Sequence[int]) -> tuple[list[str], list[list[int]]]:
        """The words of a text, and the positions of each one's tokens."""
        words, numbers = self._tokenizer.words(ids)
        return words, [[at for at, number in enumerate(numbers) if number == word] for word in range(len(words))]

    def _read(self, encoded: bytes, name: str, longest: int, remedy: str) -> Ids:
        """The ids of a text. One that is too long is refused with the `remedy`, or cut if that is empty."""
        try:
            text = encoded.decode()
        except UnicodeDecodeError as exc:
            raise InvalidInput(f"{name} must be UTF-8: {exc.reason} at byte {exc.start}") from exc
        if len(text) > MAX_TEXT and remedy:
            raise InvalidInput(f"{name} must have at most {MAX_TEXT:,} characters, not {len(text):,}: {remedy}")
        ids = self._tokenizer.encode_text(text[:MAX_TEXT], name)
        if not ids:
            raise InvalidInput(f"{name} is empty: send words" + ("" if name == ONE else ", or leave it out"))
        if len(ids) > longest and remedy:
            raise InvalidInput(f"{name} must have at most {longest} tokens, not {len(ids)}: {remedy}")
        return self._framed(ids)

    def _framed(self, ids: Ids) -> Ids:
        return [self._first, *ids[: self._longest], self._last] if ids else []
