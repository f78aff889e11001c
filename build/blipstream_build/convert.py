# SPDX-License-Identifier: Apache-2.0
"""transformers' weights under the engine's names, folded into the shapes that it computes with."""

import hashlib
from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from blipstream.config import TextConfig, VisionConfig

Weights = dict[str, Tensor]


def vision_weights(weights: Mapping[str, Tensor], config: VisionConfig) -> Weights:
    """For blipstream.vision.vit.VisionTransformer, from any BLIP's state dict."""
    embeddings = "vision_model.embeddings"
    mean, std = torch.tensor(config.image_mean), torch.tensor(config.image_std)
    converted = {
        "scale": (1 / (255 * std)).view(3, 1, 1),
        "shift": (-mean / std).view(3, 1, 1),
        "class_embedding": weights[f"{embeddings}.class_embedding"],
        "position_embedding": weights[f"{embeddings}.position_embedding"],
        **_pair(weights, f"{embeddings}.patch_embedding", "patch_embedding"),
        **_pair(weights, "vision_model.post_layernorm", "norm"),
    }
    names = {
        "layer_norm1": "attention_norm",
        "self_attn.qkv": "qkv",
        "self_attn.projection": "projection",
        "layer_norm2": "mlp_norm",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    for i in range(config.num_layers):
        for theirs, ours in names.items():
            converted |= _pair(weights, f"vision_model.encoder.layers.{i}.{theirs}", f"layers.{i}.{ours}")
    return converted


def decoder_weights(weights: Mapping[str, Tensor], config: TextConfig) -> Weights:
    """For blipstream.text.decoder.TextDecoder, from BlipForConditionalGeneration's state dict."""
    head = "text_decoder.cls.predictions"
    converted = {
        "head_bias": weights[f"{head}.bias"],
        **_pair(weights, f"{head}.transform.dense", "head_dense"),
        **_pair(weights, f"{head}.transform.LayerNorm", "head_norm"),
        **_text_weights(weights, "text_decoder.bert", config),
    }
    for i in range(config.num_layers):
        converted |= _absorbed(weights, f"text_decoder.bert.encoder.layer.{i}.crossattention", f"layers.{i}", config)
    return converted


def text_encoder_weights(weights: Mapping[str, Tensor], config: TextConfig) -> Weights:
    """For blipstream.text.encoder.TextTransformer, from BlipForImageTextRetrieval's state dict."""
    converted = _text_weights(weights, "text_encoder", config)
    for i in range(config.num_layers):
        theirs, ours = f"text_encoder.encoder.layer.{i}.crossattention", f"layers.{i}"
        for part in ("query", "key", "value"):
            converted |= _pair(weights, f"{theirs}.self.{part}", f"{ours}.cross_{part}")
        converted |= _pair(weights, f"{theirs}.output.dense", f"{ours}.cross_output")
    return converted


def head_weights(weights: Mapping[str, Tensor]) -> Weights:
    """For blipstream.matching.heads.Heads, from BlipForImageTextRetrieval's state dict."""
    names = {"itm_head": "match", "vision_proj": "image", "text_proj": "text"}
    return {name: weight for theirs, ours in names.items() for name, weight in _pair(weights, theirs, ours).items()}


def _text_weights(weights: Mapping[str, Tensor], theirs: str, config: TextConfig) -> Weights:
    """The embeddings, and of the layers all but cross-attention itself, which decoder and encoder compute otherwise."""
    converted = {
        "word_embedding.weight": weights[f"{theirs}.embeddings.word_embeddings.weight"],
        "position_embedding.weight": weights[f"{theirs}.embeddings.position_embeddings.weight"],
        **_pair(weights, f"{theirs}.embeddings.LayerNorm", "embedding_norm"),
    }
    names = {
        "attention.output.dense": "self_output",
        "attention.output.LayerNorm": "self_norm",
        "crossattention.output.LayerNorm": "cross_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        "output.LayerNorm": "mlp_norm",
    }
    for i in range(config.num_layers):
        layer, ours = f"{theirs}.encoder.layer.{i}", f"layers.{i}"
        for name, new_name in names.items():
            converted |= _pair(weights, f"{layer}.{name}", f"{ours}.{new_name}")
        for kind in ("weight", "bias"):
            parts = [weights[f"{layer}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            converted[f"{ours}.qkv.{kind}"] = torch.cat(parts)
    return converted


def _absorbed(weights: Mapping[str, Tensor], theirs: str, ours: str, config: TextConfig) -> Weights:
    """Cross-attention as DecoderLayer computes it.

    The query contains the scale, and the output's bias that of the values. The keys' bias drops out of the softmax.
    """
    head_size = config.hidden_size // config.num_heads
    scale = 1 / sqrt(head_size)
    key, value = weights[f"{theirs}.self.key.weight"], weights[f"{theirs}.self.value.weight"]
    output, value_bias = weights[f"{theirs}.output.dense.weight"], weights[f"{theirs}.self.value.bias"]
    return {
        f"{ours}.cross_query.weight": weights[f"{theirs}.self.query.weight"] * scale,
        f"{ours}.cross_query.bias": weights[f"{theirs}.self.query.bias"] * scale,
        f"{ours}.cross_key": key.view(config.num_heads, head_size, -1),
        f"{ours}.cross_value": value.view(config.num_heads, head_size, -1).mT,
        f"{ours}.cross_value_bias": value_bias,
        f"{ours}.cross_output.weight": output,
        f"{ours}.cross_output.bias": weights[f"{theirs}.output.dense.bias"] + output @ value_bias,
    }


def hash_of(weights: Weights) -> str:
    """A hash of weights, which others with the same names and numbers have, too."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().data)
    return digest.hexdigest()


def _pair(weights: Mapping[str, Tensor], theirs: str, ours: str) -> Weights:
    return {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
