# SPDX-License-Identifier: Apache-2.0
"""BLIP's text encoder: tokens to the last hidden state of each text's first token.

A text is read alone, as its embedding needs it, or with cross-attention to an image, as matching needs it. One batch
may have both: where a text is read alone, what cross-attention would add is left out. So one set of weights does for
both.

I images with R texts each, T tokens a text, N tokens an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from blipstream.config import CheckpointConfig, TextConfig
from blipstream.text.decoder import embedding


class TextBatch(NamedTuple):
    """What a text encoder reads at once. Padding has any ids, and a length of at least 1."""

    ids: npt.NDArray[np.int64]  # [I, R, T]
    lengths: npt.NDArray[np.int64]  # [I, R], tokens of each text
    looks: npt.NDArray[np.bool_]  # [I, R], whether a text attends to its image
    image_embeds: npt.NDArray[np.float32]  # [I, N, E]; any numbers where no text looks


class Gradients(NamedTuple):
    """Of one text that is read with its image, and of a number that its hidden state makes."""

    hidden: npt.NDArray[np.float32]  # [h], as `encode` gives it
    maps: Tensor  # f32 [T, N], of each token: how much of that number it finds in each vector of the image


class TextEncoder(ABC):
    """Tokens to hidden states. Not thread-safe: one thread drives it."""

    config: CheckpointConfig
    dtype: str  # what it computes in: bf16, f16 or f32

    @abstractmethod
    def encode(self, batch: TextBatch) -> npt.NDArray[np.float32]:
        """The last hidden state of each text's first token, [I, R, h]."""

    @abstractmethod
    def gradients(
        self,
        ids: Sequence[int],
        image_embeds: npt.NDArray[Any],
        direction: npt.NDArray[np.float32],
        layer: int = -1,
        head: int = -1,
    ) -> Gradients:
        """GradCAM on cross-attention, for ids [T], image_embeds [N, E] and the number hidden @ `direction` [h].

        The maps are the attention weights times their positive gradients: the mean of all heads, or one `head`, and the
        sum of all layers, or one `layer`. Those of the last layer are 0 but for the first token. Source:
        `compute_gradcam` of github.com/salesforce/LAVIS.
        """


Recorder = Callable[[Tensor], Tensor]  # gets a layer's cross-attention weights [I, heads, R T, N], and gives them back


class EncoderLayer(nn.Module):
    """One post-norm layer: self-attention in both directions, cross-attention, feed-forward.

    The image's keys and values are computed once for all of its texts. For 1 short text it would be cheaper to absorb
    them, as the decoder does; from 70 tokens on, at 577 tokens an image, it is dearer.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.self_output = nn.Linear(width, width)
        self.self_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.cross_query = nn.Linear(width, width)
        self.cross_key = nn.Linear(config.encoder_hidden_size, width)
        self.cross_value = nn.Linear(config.encoder_hidden_size, width)
        self.cross_output = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.mlp_norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(
        self, hidden: Tensor, mask: Tensor, looks: Tensor, x: Tensor, recorder: Recorder | None = None
    ) -> Tensor:
        """Hidden [I R, T, h] -> the same.

        `mask` is bool [I R, 1, 1, T], `looks` is bool [I R, 1, 1], `x` is image_embeds [I, N, E].
        """
        q, k, v = (self._by_head(part) for part in self.qkv(hidden).chunk(3, -1))
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = self.self_norm(hidden + self.self_output(context.transpose(1, 2).flatten(2)))

        queries = self.cross_query(hidden).reshape(x.shape[0], -1, hidden.shape[-1])  # all of an image in one row
        q, k, v = (self._by_head(part) for part in (queries, self.cross_key(x), self.cross_value(x)))
        if recorder is None:
            context = F.scaled_dot_product_attention(q, k, v)
        else:
            context = recorder((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)) @ v
        context = context.transpose(1, 2).reshape(hidden.shape)
        hidden = torch.where(looks, self.cross_norm(hidden + self.cross_output(context)), hidden)

        output: Tensor = self.mlp_norm(hidden + self.fc2(F.gelu(self.fc1(hidden))))
        return output

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, n, h] -> [B, heads, n, head size]."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)


class TextTransformer(nn.Module):
    """Embeddings and layers."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embedding = embedding(config.vocab_size, width)
        self.position_embedding = embedding(config.max_positions, width)
        self.embedding_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))

    def forward(
        self, ids: Tensor, lengths: Tensor, looks: Tensor, image_embeds: Tensor, recorder: Recorder | None = None
    ) -> Tensor:
        """The last hidden state of each text's first token, [I, R, h] in the weights' dtype.

        `ids` is int64 [I, R, T], `lengths` is int64 [I, R], `looks` is bool [I, R], `image_embeds` is [I, N, E].
        """
        images, texts, tokens = ids.shape
        positions = torch.arange(tokens, device=ids.device)
        hidden: Tensor = self.word_embedding(ids.flatten(0, 1)) + self.position_embedding(positions)
        hidden = self.embedding_norm(hidden)
        mask = positions < lengths.reshape(-1, 1, 1, 1)
        looks, x = looks.reshape(-1, 1, 1), image_embeds.to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, mask, looks, x, recorder)
        return hidden[:, 0].reshape(images, texts, hidden.shape[-1])
