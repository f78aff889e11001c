# SPDX-License-Identifier: Apache-2.0
"""The tokenizer equals transformers'."""

from pathlib import Path

import pytest

from blipstream.config import CheckpointConfig
from blipstream.errors import ArtifactError
from blipstream.text.tokenizer import Tokenizer
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
