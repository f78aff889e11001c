# SPDX-License-Identifier: Apache-2.0
"""Prompts to token ids, token ids to captions."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from blipstream.config import BUILD_HINT, TextConfig
from blipstream.errors import ArtifactError

TOKENIZER_NAME = "tokenizer.json"


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
