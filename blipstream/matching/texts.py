# SPDX-License-Identifier: Apache-2.0
"""The texts of a request, as tokens. What the model cannot read is refused, and nothing is cut unasked."""

from collections.abc import Sequence

from blipstream.config import CheckpointConfig
from blipstream.errors import InvalidInput
from blipstream.options import MAX_TEXT
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
        return [self._read(text, name, truncate) for text, name in zip(texts, names, strict=True)]

    def read_caption(self, encoded: bytes) -> Ids:
        """The ids of a caption, or of as much of it as the model has positions for. Empty if it has no words."""
        return self._framed(self._tokenizer.encode_words(encoded.decode(errors="replace")[:MAX_TEXT]))

    def _read(self, encoded: bytes, name: str, truncate: bool) -> Ids:
        try:
            text = encoded.decode()
        except UnicodeDecodeError as exc:
            raise InvalidInput(f"{name} must be UTF-8: {exc.reason} at byte {exc.start}") from exc
        if len(text) > MAX_TEXT and not truncate:
            raise InvalidInput(f"{name} must have at most {MAX_TEXT:,} characters, not {len(text):,}: {TOO_LONG}")
        ids = self._tokenizer.encode_text(text[:MAX_TEXT], name)
        if not ids:
            raise InvalidInput(f"{name} is empty: send words" + ("" if name == ONE else ", or leave it out"))
        if len(ids) > self._longest and not truncate:
            raise InvalidInput(f"{name} must have at most {self._longest} tokens, not {len(ids)}: {TOO_LONG}")
        return self._framed(ids)

    def _framed(self, ids: Ids) -> Ids:
        return [self._first, *ids[: self._longest], self._last] if ids else []
