# SPDX-License-Identifier: Apache-2.0
"""The adapters that rows use, side by side, so that one product is over the rows of all of them.

Rows of different adapters, and of none, are computed in one forward. For each term of low rank, the inputs of the rows
are grouped by adapter, and two batched products give what is added to the layer's output: as S-LoRA (arXiv:2311.03285)
and Punica (arXiv:2310.18547) do, with padding in place of kernels of their own.

Shapes in this file: n tokens, A adapters, m tokens at most of each, r the highest rank of a term.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blipstream.text.adapter import HEAD_BIAS, WORD_EMBEDDING, Adapter

FIXED_PLACES = 8  # places to begin with, if shapes are fixed; then they are doubled


class AdapterStack:
    """The tensors of the adapters that run, those of one name in one tensor [places, ...].

    Place 0 is for rows without an adapter, and has zeros. An adapter that runs no more stays until another one needs
    its place.

    layers.N.LAYER.down     [in, r]; cross_key's [r, in]
    layers.N.LAYER.up       [r, out]; cross_key's [heads, head size, r]; cross_value's [heads, r, head size]
    head_dense.down and .up the same
    word_embedding          [words, h], zeros behind an adapter's own
    head_bias               [words], -infinity behind an adapter's own
    """

    def __init__(self, *, fixed_shapes: bool = False) -> None:
        """`fixed_shapes`: whether no shape may depend on which rows have which adapter, as in a CUDA graph."""
        self.tensors: dict[str, Tensor] = {}
        self.generation = 0  # how often tensors were replaced
        self._adapters: list[Adapter | None] = [None]  # by place
        self._fixed_shapes = fixed_shapes

    def place(self, adapter: Adapter, running: Container[Adapter | None]) -> int:
        """The place of an adapter, which it takes if it has none; those that are `running` keep theirs.

        New tensors replace those that are too small for it.
        """
        if adapter in self._adapters:
            return self._adapters.index(adapter)
        free = [place for place, each in enumerate(self._adapters) if place and (each is None or each not in running)]
        if not free:
            free = [len(self._adapters)]
            self._adapters += [None] * (max(FIXED_PLACES, len(self._adapters)) if self._fixed_shapes else 1)
        place = free[0]
        self._adapters[place] = adapter
        with torch.inference_mode(False):  # gradients are found through them, too
            for name in self.tensors.keys() | adapter.tensors.keys():
                self._put(name, place, adapter.tensors.get(name))
        return place

    def _put(self, name: str, place: int, tensor: Tensor | None) -> None:
        """Write an adapter's tensor; None: it has none of that name."""
        if tensor is None:
            tensor = self.tensors[name].new_empty([0] * (self.tensors[name].dim() - 1))
        fill = -torch.inf if name == HEAD_BIAS else 0
        old = self.tensors.get(name, tensor[None, :0])
        shape = (len(self._adapters), *map(max, old.shape[1:], tensor.shape))
        if old.shape != shape:
            self.generation += 1
            self.tensors[name] = old.new_full(shape, fill)
            _corner(self.tensors[name], old.shape).copy_(old)
        own = self.tensors[name][place].fill_(fill)
        _corner(own, tensor.shape).copy_(tensor)

    def embed(self, ids: Tensor, places: Tensor, base: nn.Embedding) -> Tensor:
        """The word embeddings of `ids`, int64 [n], of tokens whose adapters are at `places`, int64 [n]: [n, h]."""
        words = self.tensors[WORD_EMBEDDING]
        added = ids - base.num_embeddings
        own = words[places, added.clamp(0, words.shape[1] - 1)]
        return torch.where((added >= 0)[:, None], own, base(ids.clamp(max=base.num_embeddings - 1)))

    def tokens(self, places: Tensor) -> "AdaptedTokens":
        """The tokens whose adapters are at `places`, int64 [n], in groups."""
        device = places.device
        if self._fixed_shapes:
            tokens = torch.arange(len(places), device=device)
            source = tokens.expand(len(self._adapters), -1)
            return AdaptedTokens(self.tensors, slice(None), source, tokens, places * len(places) + tokens)
        counts = places.bincount()
        tokens = places.argsort(stable=True)[counts[0] :]
        counts = counts[1:]
        longest = int(counts.max())
        own = places[tokens] - 1
        targets = own * longest + torch.arange(len(tokens)) - (counts.cumsum(0) - counts)[own]
        source = torch.zeros(len(counts) * longest, dtype=torch.int64)
        source[targets] = tokens
        return AdaptedTokens(self.tensors, slice(1, 1 + len(counts)), source.view(-1, longest), tokens, targets)


def _corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first numbers of a tensor in each dimension."""
    return tensor[tuple(slice(size) for size in shape)]


@dataclass(frozen=True, eq=False)
class AdaptedTokens:
    """Tokens in groups, each of one adapter, padded with any tokens."""

    tensors: dict[str, Tensor]  # the stack's
    adapters: slice  # of the stack
    source: Tensor  # int64 [A, m], the tokens of each group
    tokens: Tensor  # int64 [k], those that have an adapter
    targets: Tensor  # int64 [k], where they are in the groups laid end to end

    def _term(self, name: str) -> tuple[Tensor, Tensor] | None:
        if f"{name}.down" not in self.tensors:
            return None
        return self.tensors[f"{name}.down"][self.adapters], self.tensors[f"{name}.up"][self.adapters]

    def add_linear(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """Add the terms of a linear layer of x [n, in] to its output [n, out], in place."""
        if (term := self._term(name)) is None:
            return output
        down, up = term
        delta = x[self.source] @ down @ up  # [A, m, out]
        return output.index_add_(0, self.tokens, delta.flatten(0, 1)[self.targets])

    def add_key(self, name: str, q: Tensor, absorbed: Tensor) -> Tensor:
        """Add a key's terms to the queries that have absorbed it, [heads, n, E]; q is [n, heads, head size].

        (W + up down)ᵀ q = Wᵀ q + downᵀ upᵀ q, a head at a time.
        """
        if (term := self._term(name)) is None:
            return absorbed
        down, up = term
        adapters, longest = self.source.shape
        low = q[self.source].transpose(1, 2) @ up  # [A, heads, m, r]
        delta = (low.flatten(1, 2) @ down).view(adapters, -1, longest, down.shape[-1])  # [A, heads, m, E]
        delta = delta.transpose(0, 1).flatten(1, 2)[:, self.targets]
        return absorbed.index_add_(1, self.tokens, delta)

    def add_value(self, name: str, mix: Tensor, context: Tensor) -> Tensor:
        """Add a value's terms of the mix [heads, n, E] of an image to its context [heads, n, head size], in place."""
        if (term := self._term(name)) is None:
            return context
        down, up = term
        adapters, longest = self.source.shape
        low = mix[:, self.source].transpose(0, 1).flatten(1, 2) @ down  # [A, heads m, r]
        delta = low.view(adapters, len(mix), longest, -1) @ up  # [A, heads, m, head size]
        delta = delta.transpose(0, 1).flatten(1, 2)[:, self.targets]
        return context.index_add_(1, self.tokens, delta)

    def added_words(self, hidden: Tensor, num_words: int) -> Tensor:
        """The head's logits of added words, f32 [n, num_words], -infinity behind those that a token's adapter adds."""
        embedding, bias = (self.tensors[name][self.adapters, :num_words] for name in (WORD_EMBEDDING, HEAD_BIAS))
        own = (hidden[self.source] @ embedding.transpose(1, 2) + bias[:, None]).flatten(0, 1)[self.targets]
        logits = torch.full((len(hidden), num_words), -torch.inf, device=hidden.device)
        logits[self.tokens, : own.shape[1]] = own.float()
        return logits
