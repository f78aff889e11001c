# SPDX-License-Identifier: Apache-2.0
"""Adapters with random weights, as PEFT saves them over the demo checkpoint."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, BlipForConditionalGeneration

from tests.conftest import CHECKPOINT

WORDS = ["犬", "猫", "é"]  # which the demo's tokenizer lacks
LINEAR = r"text_decoder\..*\.(query|key|value|dense)"  # all linear layers of the text decoder
DEVIATION = 0.15  # of the weights: enough to change captions


def save_peft_folder(folder: Path, *, words: int = 0, seed: int = 0, embeddings: bool = False, **settings: Any) -> Path:
    """An adapter with `words` new words, and other settings of LoraConfig. With `embeddings`, all of them are saved."""
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    size = model.config.text_config.vocab_size
    if words:
        tokenizer.add_tokens(WORDS[:words])
        model.resize_token_embeddings(size + words, mean_resizing=False)
        tokenizer.save_pretrained(folder)
    if words and not embeddings:
        settings.setdefault("trainable_token_indices", {"word_embeddings": list(range(size, size + words))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        defaults: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}
        adapted = get_peft_model(model, LoraConfig(**defaults | settings))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, DEVIATION)
        adapted.save_pretrained(str(folder), save_embedding_layers=embeddings)
    return folder
