# SPDX-License-Identifier: Apache-2.0
"""BLIP's text decoder: one forward over rows, with absorbed cross-attention.

A row is one caption in the making. Cross-attention never computes the image's keys and values. Both are
linear in image_embeds x, so the query is projected through W_k instead, attends over x itself, and the mix is
projected through W_v afterwards:

    softmax(q (x W_kᵀ + b_k)ᵀ) (x W_vᵀ + b_v) = softmax((q W_k) xᵀ) x W_vᵀ + b_v

since q b_kᵀ is the same for every patch and cancels in the softmax, and its weights sum to one. The same
identity serves multi-head latent attention in DeepSeek-V2 (arXiv:2405.04434).
"""

from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from blipstream.config import TextConfig

Groups = list[tuple[int, int]]  # (images, rows that look at each): runs of images with equally many rows


class PackedLinear(nn.Module):
    """nn.Linear on a CPU, with its weight in oneDNN's own layout. nn.Linear reorders its weight in each call.

    torch.compile calls the same operators for frozen weights; PyTorch has no public ones. On two Zen 4 cores, a step of
    base takes 8 to 15 % less time in bf16 and 18 to 35 % less in f32, at 1 to 40 rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """From a weight [out, in] and a bias [out]."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the weight's dtype."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return output


def can_pack(weight: Tensor) -> bool:
    """Whether PackedLinear works here for weights of this dtype and device. Tries it on a corner of the weight."""
    if weight.device.type != "cpu":
        return False
    corner = weight[:1, :1].detach().contiguous()
    try:
        PackedLinear(corner, corner[0])(corner)
    except (AttributeError, RuntimeError):  # this PyTorch lacks the operators; this processor lacks the dtype
        return False
    return True


class DecoderLayer(nn.Module):
    """One post-norm layer: self-attention over the cache, absorbed cross-attention, feed-forward."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.num_heads, self.head_size = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.self_output = nn.Linear(width, width)
        self.self_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.cross_query = nn.Linear(width, width)  # scaled by 1 / sqrt(head size)
        self.cross_key = nn.Parameter(torch.empty(heads, self.head_size, config.encoder_hidden_size))
        self.cross_value = nn.Parameter(torch.empty(heads, config.encoder_hidden_size, self.head_size))
        self.cross_output = nn.Linear(width, width)  # its bias holds the values' bias too
        self.cross_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.mlp_norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        image_embeds: Tensor,
        groups: Groups,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Hidden [R, T, h] -> [R, T, h], writing this layer's keys and values at `positions` [R, T].

        `keys` and `values` are [R, heads, length, head size], `mask` [R, 1, T, length], `image_embeds` [I, N, E],
        `groups` as TextDecoder has them.
        """
        hidden = self.self_norm(hidden + self._self_attention(hidden, keys, values, positions, mask))
        hidden = self.cross_norm(hidden + self._cross_attention(hidden, image_embeds, groups))
        output: Tensor = self.mlp_norm(hidden + self.fc2(F.gelu(self.fc1(hidden))))
        return output

    def _self_attention(self, hidden: Tensor, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # [R, T, heads, head size]
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        keys[rows, :, positions] = k
        values[rows, :, positions] = v
        length = mask.shape[-1]
        context = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys[:, :, :length], values[:, :, :length], attn_mask=mask
        )
        output: Tensor = self.self_output(context.transpose(1, 2).flatten(2))
        return output

    def _cross_attention(self, hidden: Tensor, image_embeds: Tensor, groups: Groups) -> Tensor:
        rows, tokens, _ = hidden.shape
        q = self.cross_query(hidden).view(rows * tokens, self.num_heads, self.head_size)
        absorbed = torch.bmm(q.transpose(0, 1), self.cross_key)  # [heads, R T, E]
        mixes, image, query = [], 0, 0
        for images, rows_per_image in groups:
            queries = images * rows_per_image * tokens
            x = image_embeds[image : image + images]
            mixes.append(_attend(absorbed[:, query : query + queries], x))
            image, query = image + images, query + queries
        mix = mixes[0] if len(mixes) == 1 else torch.cat(mixes, dim=1)  # [heads, R T, E]
        context = torch.bmm(mix, self.cross_value)  # [heads, R T, head size]
        output: Tensor = self.cross_output(context.transpose(0, 1).reshape(rows, tokens, -1))
        return output


def _attend(queries: Tensor, x: Tensor) -> Tensor:
    """Absorbed queries [heads, I Q, E] over x [I, N, E], Q to an image -> [heads, I Q, E].

    All queries that look at one image, of every head, row and token, are one matrix.
    """
    images, _, width = x.shape
    heads = len(queries)
    queries = queries.view(heads, images, -1, width).transpose(0, 1).flatten(1, 2)  # [I, heads Q, E]
    weights = torch.bmm(queries, x.transpose(1, 2)).softmax(-1)  # [I, heads Q, N]
    return torch.bmm(weights, x).view(images, heads, -1, width).transpose(0, 1).flatten(1, 2)


def embedding(number: int, width: int) -> nn.Embedding:
    """An embedding that is not initialized. To draw random numbers would import PyTorch's compiler, for seconds."""
    return nn.Embedding(number, width, _weight=torch.empty(number, width))


class TextDecoder(nn.Module):
    """Embeddings, layers and the language-modelling head, whose matrix is the word embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.word_embedding = embedding(config.vocab_size, width)
        self.position_embedding = embedding(config.max_positions, width)
        self.embedding_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.head_dense = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.packed_head: PackedLinear | None = None

    def pack(self) -> Self:
        """Pack every matrix that a step multiplies with. Does nothing if this device or this PyTorch cannot.

        Call it once, after loading: a packed decoder can be neither moved nor cast.
        """
        if not can_pack(self.word_embedding.weight):
            return self
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child.weight, child.bias))
        # a copy, since embeddings are looked up in the plain matrix
        self.packed_head = PackedLinear(self.word_embedding.weight, self.head_bias)
        return self

    def new_cache(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of zeros, each [layers, rows, heads, length, head size]. Masked ones must not be NaN."""
        heads, head_size = self.config.num_heads, self.config.hidden_size // self.config.num_heads
        keys = self.word_embedding.weight.new_zeros(self.config.num_layers, rows, heads, length, head_size)
        return keys, torch.zeros_like(keys)

    def forward(
        self,
        ids: Tensor,
        past: Tensor,
        counts: Tensor,
        image_embeds: Tensor,
        groups: Groups,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """The logits, f32 [R, V], of what follows each row's last token.

        counts: int64 [R]; row r's new tokens are the first counts[r] of ids[r]. The other arguments as in `hidden`.
        """
        length = int(past.max()) + ids.shape[1]
        hidden = self.hidden(ids, past, length, image_embeds, groups, keys, values)
        return self.logits(hidden[torch.arange(len(ids), device=ids.device), counts - 1])  # the others need none

    def hidden(
        self,
        ids: Tensor,
        past: Tensor,
        length: int,
        image_embeds: Tensor,
        groups: Groups,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """The last layer's output [R, T, h].

        ids: int64 [R, T], new tokens
        past: int64 [R], tokens that each row's cache holds already
        length: of the cache that is looked at; past + T fits in it
        image_embeds: [I, N, E], in the order of the rows that look at them
        groups: how many rows look at each image
        keys, values: [layers, R, heads, capacity, head size], written in place
        """
        positions = past[:, None] + torch.arange(ids.shape[1], device=ids.device)  # [R, T]
        mask = torch.arange(length, device=ids.device) <= positions[:, None, :, None]  # [R, 1, T, length]
        hidden: Tensor = self.embedding_norm(self.word_embedding(ids) + self.position_embedding(positions))
        for layer, layer_keys, layer_values in zip(self.layers, keys, values, strict=True):
            hidden = layer(hidden, image_embeds, groups, layer_keys, layer_values, positions, mask)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The language-modelling head: [R, h] -> f32 [R, V]."""
        hidden = self.head_norm(F.gelu(self.head_dense(hidden)))
        if self.packed_head is not None:
            logits: Tensor = self.packed_head(hidden)
        else:
            logits = F.linear(hidden, self.word_embedding.weight, self.head_bias)
        return logits.float()
