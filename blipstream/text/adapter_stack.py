# SPDX-License-Identifier: Apache-2.0
"""The adapters that rows use, side by side, so that one product is over the rows of all of them.

Rows of different adapters, and of none, are computed in one forward. For each term of low rank, the inputs of the rows
are grouped by adapter, and two batched products give what is added to the layer's output: as S-LoRA (arXiv:2311.03285)
and Punica (arXiv:2310.18547) do, with padding in place of kernels of their own.

Shapes in this file: n tokens, A adapters, m tokens at most of each, r the highest rank of a term.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property

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

    def __init__(self, heads: int, *, fixed_shapes: bool = False) -> None:
        """`fixed_shapes`: whether no shape may depend on which rows have which adapter, as in a CUDA graph."""
        self.tensors: dict[str, Tensor] = {}
        self._heads = heads
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
        if self._fixed_shapes:
            tokens = torch.arange(len(places), device=places.device)
            groups = tokens.expand(len(self._adapters), -1)
            return AdaptedTokens(
                self.tensors, slice(None), groups, len(places), self._heads, tokens, places * len(places) + tokens
            )
        counts = places.bincount()
        tokens = places.argsort(stable=True)[counts[0] :]
        counts = counts[1:]
        longest = int(counts.max())
        own = places[tokens] - 1
        results = own * longest + torch.arange(len(tokens)) - (counts.cumsum(0) - counts)[own]
        groups = torch.zeros(len(counts) * longest, dtype=torch.int64)
        groups[results] = tokens
        full = len(tokens) == len(groups)
        adapters = slice(1, 1 + len(counts))
        return AdaptedTokens(
            self.tensors,
            adapters,
            groups.view(-1, longest),
            len(places),
            self._heads,
            tokens,
            None if full else results,
        )


def _corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first numbers of a tensor in each dimension."""
    return tensor[tuple(slice(size) for size in shape)]


@dataclass(frozen=True, eq=False)
class AdaptedTokens:
    """Which of n tokens have which adapter: groups of one adapter each, padded with any tokens.

    What is computed for groups is picked and added as whole rows, which is much faster than by other indices.
    """

    tensors: dict[str, Tensor]  # the stack's
    adapters: slice  # of the stack
    groups: Tensor  # int64 [A, m]
    count: int  # n
    heads: int
    tokens: Tensor  # int64 [k], those that have an adapter
    results: Tensor | None  # int64 [k], their places in the groups laid end to end; None: in order, without padding

    def add_linear(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """Add the terms of a linear layer of x [n, in] to its output [n, out], in place."""
        if term := self._term(name):
            down, up = term
            delta = x.index_select(0, self.groups.flatten()).view(*self.groups.shape, -1) @ down @ up  # [A, m, out]
            _add_rows(output, self.tokens, delta, self.results)
        return output

    def add_key(self, name: str, q: Tensor, absorbed: Tensor) -> Tensor:
        """Add a key's terms to the queries that have absorbed it, [heads, n, E], in place.

        q is [n, heads, head size]. Of each head, (W + up down)ᵀ q = Wᵀ q + downᵀ upᵀ q.
        """
        if term := self._term(name):
            down, up = term
            _, rows, results = self._of_heads
            grouped = q.index_select(0, self.groups.flatten()).view(*self.groups.shape, *q.shape[1:])
            low = grouped.transpose(1, 2) @ up  # [A, heads, m, r]
            _add_rows(absorbed.view(-1, absorbed.shape[-1]), rows, low.flatten(1, 2) @ down, results)
        return absorbed

    def add_value(self, name: str, mix: Tensor, context: Tensor) -> Tensor:
        """Add a value's terms of the mix [heads, n, E] of an image to its context [heads, n, head size], in place."""
        if term := self._term(name):
            down, up = term
            groups, rows, results = self._of_heads
            adapters, longest = self.groups.shape
            low = mix.flatten(0, 1).index_select(0, groups).view(adapters, -1, mix.shape[-1]) @ down  # [A, heads m, r]
            delta = low.view(adapters, -1, longest, low.shape[-1]) @ up  # [A, heads, m, head size]
            _add_rows(context.view(-1, context.shape[-1]), rows, delta, results)
        return context

    def added_words(self, hidden: Tensor, num_words: int) -> Tensor:
        """The head's logits of added words, f32 [n, num_words], -infinity behind those that a token's adapter adds."""
        embedding, bias = (self.tensors[name][self.adapters, :num_words] for name in (WORD_EMBEDDING, HEAD_BIAS))
        own = (hidden[self.groups] @ embedding.transpose(1, 2) + bias[:, None]).flatten(0, 1)
        logits = torch.full((len(hidden), num_words), -torch.inf, device=hidden.device)
        logits[self.tokens, : own.shape[1]] = (own if self.results is None else own[self.results]).float()
        return logits

    def _term(self, name: str) -> tuple[Tensor, Tensor] | None:
        """What a layer is adapted by; None if no adapter has a term there."""
        if f"{name}.down" not in self.tensors:
            return None
        return self.tensors[f"{name}.down"][self.adapters], self.tensors[f"{name}.up"][self.adapters]

    @cached_property
    def _of_heads(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """`groups`, `tokens` and `results` for what each head has: of tokens [heads n], and of groups [A heads m]."""
        longest = self.groups.shape[1]
        head = torch.arange(self.heads, device=self.groups.device)[:, None]
        groups = (head * self.count + self.groups[:, None]).flatten()
        if self.results is None:
            return groups, groups, None
        results = (self.results // longest * self.heads + head) * longest + self.results % longest
        return groups, (head * self.count + self.tokens).flatten(), results.flatten()


def _add_rows(output: Tensor, rows: Tensor, delta: Tensor, results: Tensor | None) -> None:
    """Add the `results` of delta [..., out], or all of them, to `rows` of the output [n, out]."""
    delta = delta.reshape(-1, delta.shape[-1])
    output.index_add_(0, rows, delta if results is None else delta.index_select(0, results))
