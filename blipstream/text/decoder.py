# SPDX-License-Identifier: Apache-2.0
"""BLIP's text decoder: one forward over rows, with absorbed cross-attention.

A row is one caption in the making. Cross-attention never computes the image's keys and values. Both are
linear in image_embeds x, so the query is projected through W_k instead, attends over x itself, and the mix is
projected through W_v afterwards:

    softmax(q (x W_kᵀ + b_k)ᵀ) (x W_vᵀ + b_v) = softmax((q W_k) xᵀ) x W_vᵀ + b_v

since q b_kᵀ is the same for every patch and cancels in the softmax, and its weights sum to one. The same
identity serves multi-head latent attention in DeepSeek-V2 (arXiv:2405.04434).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from blipstream.config import TextConfig
from blipstream.text.adapter_stack import AdaptedTokens, AdapterStack

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
        output: Tensor
        if x.requires_grad:
            output = _PackedProduct.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        else:
            output = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return output


class _PackedProduct(torch.autograd.Function):
    """The product of PackedLinear, with the gradient that the operator lacks. The weight gets none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ANN401
        ctx.weight = weight
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return gradients[0] @ ctx.weight.to_dense(), None, None


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


class Recorder(Protocol):
    """Takes the attention weights of a segment's new tokens, layer by layer."""

    wants_self_attention: bool

    def self_attention(self, layer: int, weights: Tensor) -> None:
        """Weights [R, heads, T, length]."""

    def cross_attention(self, layer: int, weights: Tensor) -> Tensor:
        """Weights [I, heads, Q, N], where an image's Q queries are the tokens of all its rows.

        Returns the weights to go on with.
        """

    def context(self, layer: int, context: Tensor) -> None:
        """What cross-attention mixes by the weights, without the values' bias: [heads, R T, head size]."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows that lie in one cache, each with as many new tokens T. A forward runs over several segments at once."""

    ids: Tensor  # int64 [R, T], new tokens
    past: Tensor  # int64 [R], tokens that each row's cache holds already
    length: int  # tokens of the cache to look at; past + T fits in it
    image_embeds: Tensor  # [I, N, E], in the order of the rows that look at them
    groups: Groups  # how many rows look at each image
    keys: Tensor | list[Tensor]  # [layers, rows, heads, capacity, head size], written in place
    values: Tensor | list[Tensor]  # the same
    patches: int | None = None  # how many of the N patches count; None: all
    rows: Tensor | None = None  # int64 [R], where the rows lie in the cache; None: they are its first
    counts: Tensor | None = None  # int64 [R], how many of a row's T tokens count; None: all
    adapters: Tensor | None = None  # int64 [R], places in the decoder's stack of adapters, 0 for none; None: all 0
    added_words: int = 0  # how many words the logits have behind the vocabulary's: room for all that an adapter adds
    recorder: Recorder | None = None  # of a segment that is alone; None: nobody looks at the attention weights


Places = tuple[Tensor, Tensor, Tensor]  # where new tokens go: rows [R, 1], positions [R, T]; the mask [R, 1, T, length]


def _places(segment: Segment) -> Places:
    rows, tokens = segment.ids.shape
    device = segment.ids.device
    index = torch.arange(rows, device=device) if segment.rows is None else segment.rows
    positions = segment.past[:, None] + torch.arange(tokens, device=device)
    mask = torch.arange(segment.length, device=device) <= positions[:, None, :, None]
    return index[:, None], positions, mask


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
        self.cross_value_bias = nn.Parameter(torch.empty(width))  # which the next one's bias holds, too
        self.cross_output = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.mlp_norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        layer: int,
        segments: Sequence[Segment],
        places: Sequence[Places],
        adapted: AdaptedTokens | None = None,
    ) -> Tensor:
        """Hidden [n, h] -> [n, h]: the new tokens of all segments in a row, and which of them are `adapted`.

        Writes their keys and values to the segments' caches of this `layer`.
        """

        def linear(name: str, x: Tensor) -> Tensor:
            output: Tensor = getattr(self, name)(x)
            return adapted.add_linear(f"layers.{layer}.{name}", x, output) if adapted else output

        context = self._self_attention(linear("qkv", hidden), layer, segments, places)
        hidden = self.self_norm(hidden + linear("self_output", context))
        context = self._cross_attention(linear("cross_query", hidden), layer, segments, adapted)
        attended = self.cross_output(context)
        if adapted:  # whose term knows nothing of the bias that cross_output's own has taken in
            attended = adapted.add_linear(f"layers.{layer}.cross_output", context + self.cross_value_bias, attended)
        hidden = self.cross_norm(hidden + attended)
        output: Tensor = self.mlp_norm(hidden + linear("fc2", F.gelu(linear("fc1", hidden))))
        return output

    def _self_attention(self, qkv: Tensor, layer: int, segments: Sequence[Segment], places: Sequence[Places]) -> Tensor:
        """Queries, keys and values [n, 3 h] -> context [n, h]."""
        contexts = []
        for new, segment, (rows, positions, mask) in zip(_split(qkv, segments), segments, places, strict=True):
            q, k, v = new.view(*positions.shape, 3, self.num_heads, -1).unbind(2)  # [R, T, heads, head size]
            keys, values = segment.keys[layer], segment.values[layer]
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            if segment.rows is None:
                keys, values = keys[: len(q)], values[: len(q)]
            else:
                keys, values = keys[segment.rows, :, : segment.length], values[segment.rows, :, : segment.length]
            q, keys = q.transpose(1, 2), keys[:, :, : segment.length]
            if segment.recorder and segment.recorder.wants_self_attention:
                products = q @ keys.transpose(2, 3) / self.head_size**0.5
                segment.recorder.self_attention(layer, products.masked_fill(~mask, -torch.inf).softmax(-1))
            context = F.scaled_dot_product_attention(q, keys, values[:, :, : segment.length], attn_mask=mask)
            contexts.append(context.transpose(1, 2).reshape(positions.numel(), -1))
        return _joined(contexts)

    def _cross_attention(
        self, q: Tensor, layer: int, segments: Sequence[Segment], adapted: AdaptedTokens | None
    ) -> Tensor:
        """Queries [n, h] -> context [n, h]."""
        q = q.view(-1, self.num_heads, self.head_size)
        absorbed = torch.bmm(q.transpose(0, 1), self.cross_key)  # [heads, n, E]
        if adapted:
            absorbed = adapted.add_key(f"layers.{layer}.cross_key", q, absorbed)
        mixes, query = [], 0
        for segment in segments:
            image = 0
            for images, rows_per_image in segment.groups:
                queries = images * rows_per_image * segment.ids.shape[1]
                x = segment.image_embeds[image : image + images]
                queries_of_image = absorbed[:, query : query + queries]
                mixes.append(_attend(queries_of_image, x, segment.patches, layer, segment.recorder))
                image, query = image + images, query + queries
        mix = _joined(mixes, dim=1)
        context = torch.bmm(mix, self.cross_value)  # [heads, n, head size]
        if adapted:
            context = adapted.add_value(f"layers.{layer}.cross_value", mix, context)
        if segments[0].recorder:
            segments[0].recorder.context(layer, context)
        return context.transpose(0, 1).flatten(1)


def _adapters(segments: Sequence[Segment], *, of_tokens: bool = False) -> Tensor | None:
    """The places of the adapters of all rows or tokens, int64 [n]; None if none has an adapter."""
    if all(segment.adapters is None for segment in segments):
        return None
    places = [
        (segment.ids.new_zeros(len(segment.ids)) if segment.adapters is None else segment.adapters).repeat_interleave(
            segment.ids.shape[1] if of_tokens else 1
        )
        for segment in segments
    ]
    return _joined(places)


def _split(hidden: Tensor, segments: Sequence[Segment]) -> Sequence[Tensor]:
    """The part of each segment, of hidden [n, h]."""
    return [hidden] if len(segments) == 1 else torch.split(hidden, [segment.ids.numel() for segment in segments])


def _joined(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _attend(queries: Tensor, x: Tensor, patches: int | None, layer: int, recorder: Recorder | None) -> Tensor:
    """Absorbed queries [heads, I Q, E] over x [I, N, E], Q to an image -> [heads, I Q, E].

    All queries that look at one image, of every head, row and token, are one matrix. Only the first `patches` count.
    """
    images, padded, width = x.shape
    heads = len(queries)
    queries = queries.view(heads, images, -1, width).transpose(0, 1).flatten(1, 2)  # [I, heads Q, E]
    scores = torch.bmm(queries, x.transpose(1, 2))  # [I, heads Q, N]
    if patches is not None and patches < padded:
        scores[:, :, patches:] = -float("inf")
    weights = scores.softmax(-1)
    if recorder:
        recorded = recorder.cross_attention(layer, weights.view(images, heads, -1, padded))
        weights = recorded.flatten(1, 2)
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
        self.adapters = AdapterStack(config.num_heads)

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

    def forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        """The logits, f32 [R, V] of each segment, of what follows each row's last new token."""
        hidden = [
            hidden[:, -1]
            if segment.counts is None
            else hidden[torch.arange(len(hidden), device=hidden.device), segment.counts - 1]
            for segment, hidden in zip(segments, self.hidden(segments), strict=True)
        ]
        adapters = _adapters(segments)
        rows = self._head(_joined(hidden), adapters)
        parts = [len(each) for each in hidden]
        known = torch.split(self._known_words(rows), parts)
        return [
            self._with_added_words(logits, row, segment.adapters, segment.added_words)
            for logits, row, segment in zip(known, torch.split(rows, parts), segments, strict=True)
        ]

    def hidden(self, segments: Sequence[Segment]) -> list[Tensor]:
        """The last layer's output, [R, T, h] of each segment. Writes the keys and values of all new tokens."""
        places = [_places(segment) for segment in segments]
        ids = _joined([segment.ids.reshape(-1) for segment in segments])
        positions = _joined([positions.reshape(-1) for _, positions, _ in places])
        adapters = _adapters(segments, of_tokens=True)
        if any(segment.added_words for segment in segments):
            assert adapters is not None
            embeddings = self.adapters.embed(ids, adapters, self.word_embedding)
        else:
            embeddings = self.word_embedding(ids)
        hidden: Tensor = self.embedding_norm(embeddings + self.position_embedding(positions))
        adapted = None if adapters is None else self.adapters.tokens(adapters)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, number, segments, places, adapted)
        parts = _split(hidden, segments)
        return [part.view(*segment.ids.shape, -1) for part, segment in zip(parts, segments, strict=True)]

    def logits(self, hidden: Tensor, adapters: Tensor | None = None, added_words: int = 0) -> Tensor:
        """The language-modelling head: [R, h] -> f32 [R, V + added_words]; `adapters`, int64 [R], as in Segment."""
        rows = self._head(hidden, adapters)
        return self._with_added_words(self._known_words(rows), rows, adapters, added_words)

    def _head(self, hidden: Tensor, adapters: Tensor | None) -> Tensor:
        """What the rows [R, h] of the word embedding are multiplied with."""
        output = self.head_dense(hidden)
        if adapters is not None:
            output = self.adapters.tokens(adapters).add_linear("head_dense", hidden, output)
        normed: Tensor = self.head_norm(F.gelu(output))
        return normed

    def _known_words(self, rows: Tensor) -> Tensor:
        """Logits, f32 [R, V], of the checkpoint's vocabulary."""
        if self.packed_head is not None:
            logits: Tensor = self.packed_head(rows)
        else:
            logits = F.linear(rows, self.word_embedding.weight, self.head_bias)
        return logits.float()

    def _with_added_words(self, known: Tensor, rows: Tensor, adapters: Tensor | None, added_words: int) -> Tensor:
        if not added_words:
            return known
        assert adapters is not None
        return torch.cat([known, self.adapters.tokens(adapters).added_words(rows, added_words)], -1)
