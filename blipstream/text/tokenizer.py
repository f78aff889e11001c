# SPDX-License-Identifier: Apache-2.0
"""Prompts to token ids, token ids to captions."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from blipstream.config import BUILD_HINT, TextConfig
from blipstream.errors import ArtifactError

TOKENIZER_NAME = "tokenizer.json"


class Tokenizer:
    """The checkpoint's WordPiece tokenizer, with BLIP's start token in front of every prompt."""

    def __init__(self, folder: Path, config: TextConfig) -> None:
        path = folder / TOKENIZER_NAME
        if not path.exists():
            raise ArtifactError(f"{path} is missing: {BUILD_HINT}")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._start_token_id = config.start_token_id

    def encode(self, prompt: str) -> list[int]:
        """The ids that a caption begins with. No [SEP]: the caption goes on from the prompt's last piece."""
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return [self._start_token_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
