# SPDX-License-Identifier: Apache-2.0
"""Adapters with random weights, as PEFT has them and as a decoder's artifact has them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

from blipstream.adapters import WEIGHTS_NAME, AdapterConfig
from blipstream.config import CheckpointConfig
from blipstream.text.tokenizer import TOKENIZER_NAME
from tests.reference import Reference

LAYERS = {
    "self_query": "attention.self.query",
    "self_key": "attention.self.key",
    "self_value": "attention.self.value",
    "self_output": "attention.output.dense",
    "cross_query": "crossattention.self.query",
    "cross_key": "crossattention.self.key",
    "cross_value": "crossattention.self.value",
    "cross_output": "crossattention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
ALL_LAYERS = r".*text_decoder\.(bert\.encoder\.layer\..*\.(query|key|value|dense)|cls\.predictions\.transform\.dense)"


class AdaptedReference(Reference):
    """A checkpoint with an adapter of random weights, large enough to change captions, and with `words` of its own."""

    def __init__(self, folder: Path, seed: int, words: int = 0, **lora: Any) -> None:
        super().__init__(folder)
        torch.manual_seed(seed)
        decoder = self.model.text_decoder
        if words:
            old = decoder.get_input_embeddings().weight.clone()
            self.tokenizer.add_tokens([f"mot{number}" for number in range(words)])
            decoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            decoder.get_input_embeddings().weight.data[len(old) :] = torch.randn(words, old.shape[1]) * old.std()
            decoder.cls.predictions.bias.data[len(old) :] = torch.rand(words) * 2
        self.num_words = words
        settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LAYERS} | lora
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT 0.21 asks for it
            self.peft = get_peft_model(self.model, LoraConfig(init_lora_weights=False, **settings)).eval()

    def save_adapter(self, folder: Path, base: CheckpointConfig, name: str = "default", revision: str = "") -> None:
        """Write the artifact of the adapter that PEFT calls `name`."""
        folder.mkdir(parents=True)
        decoder = self.model.text_decoder
        tensors: dict[str, Tensor] = {}

        def put(ours: str, layer: Any, scale: float = 1) -> None:
            if hasattr(layer, "lora_A"):
                tensors[f"{ours}.down"] = layer.lora_A[name].weight.contiguous()
                tensors[f"{ours}.up"] = layer.lora_B[name].weight * layer.scaling[name] * scale

        for number, layer in enumerate(decoder.bert.encoder.layer):
            for ours, path in LAYERS.items():
                scale = (base.text.hidden_size // base.text.num_heads) ** -0.5 if ours == "cross_query" else 1
                put(f"layers.{number}.{ours}", layer.get_submodule(path), scale)
        put("head_dense", decoder.cls.predictions.transform.dense)
        if self.num_words:
            tensors["word_embedding"] = decoder.get_input_embeddings().weight[-self.num_words :].contiguous()
            tensors["head_bias"] = decoder.cls.predictions.bias[-self.num_words :].contiguous()
            self.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_NAME))
        save_file(tensors, folder / WEIGHTS_NAME)
        AdapterConfig(base.checkpoint, revision or base.revision, "", num_words=self.num_words).save(folder)
