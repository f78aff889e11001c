# SPDX-License-Identifier: Apache-2.0
"""Where the model looks for each word of a finished caption, and how likely it finds a caption that was given.

Both come from one pass of the decoder over the whole caption, after it is finished: how it was found does not matter,
and no step gets slower. Absorbed cross-attention has its weights over the patches anyway.

A word's heatmap is that of the query that predicts it, which is at the token before. At the word itself, the model
already looks for the next one. A word of several tokens has the mean of their heatmaps. The weight of the patch [CLS],
which is no place in the image, is left out, and the rest is scaled to sum to 1.

The methods:

attention  the attention weights themselves
rollout    the share of each patch in what the query has become after all layers, if each attention and each residual
           connection has half a say: Abnar and Zuidema's rollout (arXiv:2005.00928), carried on to cross-attention
gradient   the weights times their positive gradients, of the word's log-probability: as Chefer, Gur and Wolf
           (arXiv:2103.15679) weight attention
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blipstream.config import CheckpointConfig, TextConfig
from blipstream.decoding.request import Request, TokenSequence
from blipstream.heatmaps import GRADIENT_SCALE, by_word, explanation
from blipstream.options import GRADIENT, ExplainOptions
from blipstream.text.decoder import DecoderLayer, Recorder, Segment, TextDecoder

# Tokens that one step reads, so that others need not wait long for theirs. Gradients take three times as long
MAX_TOKENS = 256
MAX_GRADIENT_TOKENS = 64


@dataclass(frozen=True, eq=False)
class _Passage:
    """A caption behind its prompt, and which of its tokens make which word."""

    request: Request
    method: str  # "" if it is only to be scored
    ids: list[int]  # the decoder reads all but the last one
    words: list[str]
    queries: list[list[int]]  # of each word: the positions that predict its tokens
    maps: list[Tensor] = field(default_factory=list)  # f32 [N], of the words that have their gradients


class Explainer:
    """Explains requests whose captions are finished, a part with each step. Not thread-safe."""

    def __init__(self, decoder: TextDecoder, config: CheckpointConfig) -> None:
        self._decoder = decoder
        self._text = config.text
        self._passages: list[_Passage] = []  # that wait, in the order of their arrival
        self._least_first = False

    def add(self, request: Request) -> None:
        """Take a request that has its captions, or that brought one."""
        self._passages.append(self._passage(request))

    def remove(self, request: Request) -> None:
        """Forget a request, if it waits."""
        self._passages = [passage for passage in self._passages if passage.request is not request]

    def clear(self) -> None:
        """Forget all requests."""
        self._passages = []

    def step(self) -> list[Request]:
        """Read some of what waits, and return the requests that have their explanation now, or their score."""
        chunk = self._next_chunk()
        if chunk:
            self._read_chunk(chunk)
        gradients = [each for each in self._passages if each.method == GRADIENT and each.request.sequences]
        done = [passage for passage in chunk if passage.method != GRADIENT]
        if gradients:
            # Every other step goes to the one with the least left, so that a short one need not wait for all the others
            self._least_first = not self._least_first
            done += self._add_gradients(min(gradients, key=_gradients_left) if self._least_first else gradients[0])
        self._passages = [passage for passage in self._passages if passage not in done]
        return [passage.request for passage in done]

    def _passage(self, request: Request) -> _Passage:
        method, index = (request.explain.method, request.explain.caption_index) if request.explain else ("", 0)
        ids = request.prompt_ids + (request.given_ids or request.sequences[index].ids)
        first = 0 if request.options.include_prompt else len(request.prompt_ids)
        words, numbers = request.tokenizer.words(ids[first:])
        queries: list[list[int]] = [[] for _ in words]
        for position, number in enumerate(numbers, first):
            if number >= 0:
                queries[number].append(position - 1)
        return _Passage(request, method, ids, words, queries)

    def _next_chunk(self) -> list[_Passage]:
        """What one pass is to read for maps or scores: some of one method."""
        waiting = [each for each in self._passages if each.method != GRADIENT or not each.request.sequences]
        chunk: list[_Passage] = []
        longest = 0
        for passage in waiting:
            longest = max(longest, len(passage.ids))
            if chunk and (passage.method != chunk[0].method or longest * (len(chunk) + 1) > MAX_TOKENS):
                break
            chunk.append(passage)
        return chunk

    def _read_chunk(self, chunk: Sequence[_Passage]) -> None:
        kind = RECORDERS.get(chunk[0].method)
        recorder = kind(_Selection.of(chunk, self._text)) if kind else None
        hidden = self._read(chunk, recorder)
        for row, passage in enumerate(chunk):
            if passage.request.given_ids:
                passage.request.sequences = [self._scored(passage, hidden[row])]
            if recorder:
                maps = by_word(recorder.maps[row], passage.queries)
                passage.request.explanation = explanation(passage.words, maps)

    def _add_gradients(self, passage: _Passage) -> list[_Passage]:
        """Find the gradients of some more words. Returns the passage if it has all of them."""
        some = max(1, MAX_GRADIENT_TOKENS // len(passage.ids))
        begin = len(passage.maps)
        if queries := passage.queries[begin : begin + some]:
            passage.maps.extend(self._gradients(passage, queries))
        if len(passage.maps) < len(passage.words):
            return []
        none = torch.zeros(0, len(passage.request.image_embeds))
        maps = torch.stack(passage.maps) if passage.maps else none
        passage.request.explanation = explanation(passage.words, maps)
        return [passage]

    def _read(self, chunk: Sequence[_Passage], recorder: Recorder | None) -> Tensor:
        """The last layer's output, [R, T, h], where the decoder reads each passage."""
        rows, length = len(chunk), max(len(passage.ids) for passage in chunk) - 1
        weights = self._decoder.head_bias
        # what follows a shorter one is not seen from before it
        padded = [(passage.ids[:-1] + [0] * length)[:length] for passage in chunk]
        ids = torch.tensor(padded, device=weights.device)
        image_embeds = torch.stack([passage.request.image_embeds for passage in chunk]).to(weights)
        past = torch.zeros(rows, dtype=torch.int64, device=weights.device)
        keys, values = self._decoder.new_cache(rows, length)
        segment = Segment(
            ids,
            past,
            length,
            image_embeds,
            [(rows, 1)],
            keys,
            values,
            adapters=self._adapters(chunk),
            added_words=max(passage.request.added_words for passage in chunk),
            recorder=recorder,
        )
        return self._decoder.hidden([segment])[0]

    def _adapters(self, passages: Sequence[_Passage]) -> Tensor | None:
        """Of a segment with a row for each passage."""
        if not any(passage.request.adapter for passage in passages):
            return None
        places = [passage.request.adapter_place for passage in passages]
        return torch.tensor(places, device=self._decoder.head_bias.device)

    def _logits(self, passage: _Passage, hidden: Tensor) -> Tensor:
        """What follows tokens of a passage, by their hidden [T, h]."""
        return self._decoder.logits(hidden, self._adapters([passage] * len(hidden)), passage.request.added_words)

    def _scored(self, passage: _Passage, hidden: Tensor) -> TokenSequence:
        """The given caption with the log-probabilities of its tokens, from hidden [T, h]."""
        first = len(passage.request.prompt_ids)
        ids = passage.ids[first:]
        log_probs = self._logits(passage, hidden[first - 1 : len(passage.ids) - 1]).log_softmax(-1)
        scores: list[float] = log_probs[torch.arange(len(ids)), ids].tolist()
        return TokenSequence(ids, scores, sum(scores))

    def _gradients(self, passage: _Passage, queries: Sequence[list[int]]) -> list[Tensor]:
        """The weights times their positive gradients, f32 [N] for each word that is predicted at `queries`.

        Each word has a row, since its gradients are its own.
        """
        rows, length = len(queries), len(passage.ids) - 1
        with torch.inference_mode(False), torch.enable_grad():
            weights = self._decoder.head_bias
            ids = torch.tensor(passage.ids, device=weights.device)
            past = torch.zeros(rows, dtype=torch.int64, device=weights.device)
            # A cache for each layer: to write into a part of a tensor would spoil the gradients of the others
            keys, values = (
                [self._decoder.new_cache(rows, length)[0][0] for _ in self._decoder.layers] for _ in range(2)
            )
            image_embeds = passage.request.image_embeds[None].to(weights, copy=True)
            recorder = _Weights()
            segment = Segment(
                ids[:-1].expand(rows, -1),
                past,
                length,
                image_embeds,
                [(1, rows)],
                keys,
                values,
                adapters=self._adapters([passage] * rows),
                added_words=passage.request.added_words,
                recorder=recorder,
            )
            (hidden,) = self._decoder.hidden([segment])
            row = torch.tensor([row for row, positions in enumerate(queries) for _ in positions], device=ids.device)
            query = torch.tensor([position for positions in queries for position in positions], device=ids.device)
            log_probs = self._logits(passage, hidden[row, query]).log_softmax(-1)
            total = log_probs.gather(1, ids[query + 1][:, None]).sum()
            gradients = torch.autograd.grad(total * GRADIENT_SCALE, recorder.weights + recorder.contexts)
        selection = _Selection.of([passage], self._text)
        maps = torch.zeros(rows, length, image_embeds.shape[1], device=ids.device)
        for number, (found, layer) in enumerate(zip(recorder.weights, self._decoder.layers, strict=True)):
            # To each weight, the values' bias adds the same. It is not among the values here, so its part comes now
            assert isinstance(layer, DecoderLayer)
            bias = layer.cross_value_bias.float().view(self._text.num_heads, -1, 1)
            of_bias = gradients[len(recorder.weights) + number].float() @ bias  # [heads, rows T, 1]
            product = found.detach().float() * (gradients[number].float() + of_bias).clamp(min=0)
            maps += selection.layers[number] * selection.of_heads(product)[0].view(maps.shape)
        return [by_word(each, [positions])[0] for each, positions in zip(maps, queries, strict=True)]


@dataclass(frozen=True, eq=False)
class _Selection:
    """Which layers and heads the explanation of each row is of, as weights that add up to 1."""

    layers: Tensor  # f32 [layers, R]
    heads: Tensor  # f32 [R, heads]
    last: Tensor  # int64 [R], the last of the layers

    @classmethod
    def of(cls, chunk: Sequence[_Passage], text: TextConfig) -> "_Selection":
        options = [passage.request.explain or ExplainOptions() for passage in chunk]
        device = chunk[0].request.image_embeds.device
        layers = torch.stack([_share(each.layer, text.num_layers) for each in options], 1)
        heads = torch.stack([_share(each.head, text.num_heads) for each in options])
        last = torch.tensor([each.layer % text.num_layers for each in options])
        return cls(layers.to(device), heads.to(device), last.to(device))

    def of_heads(self, weights: Tensor) -> Tensor:
        """The mean over a row's heads: [R, heads, Q, N] -> f32 [R, Q, N]."""
        return torch.einsum("rh,rhqn->rqn", self.heads, weights.float())


class Mean:
    """Records the mean of the cross-attention weights."""

    wants_self_attention = False

    def __init__(self, selection: _Selection) -> None:
        self.maps = torch.zeros((), device=selection.heads.device)  # f32 [R, T, N]
        self._selection = selection

    def self_attention(self, layer: int, weights: Tensor) -> None:
        """Not wanted."""

    def cross_attention(self, layer: int, weights: Tensor) -> Tensor:
        """Add a layer's part."""
        share = self._selection.layers[layer][:, None, None]
        self.maps = self.maps + share * self._selection.of_heads(weights)
        return weights

    def context(self, layer: int, context: Tensor) -> None:
        """Not wanted."""


class Rollout:
    """Records what part each patch has in each token, up to a row's last layer."""

    wants_self_attention = True

    def __init__(self, selection: _Selection) -> None:
        self.maps = torch.zeros(1, 1, 1, device=selection.heads.device)  # f32 [R, T, N]
        self._selection = selection

    def self_attention(self, layer: int, weights: Tensor) -> None:
        """Each token becomes half itself, and half what it attends to."""
        mixed = self._selection.of_heads(weights) @ self.maps.expand(len(weights), weights.shape[3], -1)
        self._update(layer, (self.maps + mixed) / 2)

    def cross_attention(self, layer: int, weights: Tensor) -> Tensor:
        """Each token becomes half itself, and half the patches that it attends to."""
        self._update(layer, (self.maps + self._selection.of_heads(weights)) / 2)
        return weights

    def context(self, layer: int, context: Tensor) -> None:
        """Not wanted."""

    def _update(self, layer: int, maps: Tensor) -> None:
        self.maps = torch.where((layer <= self._selection.last)[:, None, None], maps, self.maps)


RECORDERS: dict[str, type[Mean] | type[Rollout]] = {"attention": Mean, "rollout": Rollout}


class _Weights:
    """Keeps what cross-attention has in all layers, for its gradients."""

    wants_self_attention = False

    def __init__(self) -> None:
        self.weights: list[Tensor] = []  # [I, heads, Q, N]
        self.contexts: list[Tensor] = []  # [heads, R T, head size]

    def self_attention(self, layer: int, weights: Tensor) -> None:
        """Not wanted."""

    def cross_attention(self, layer: int, weights: Tensor) -> Tensor:  # noqa: ARG002
        """Keep a layer's weights."""
        self.weights.append(weights if weights.requires_grad else weights.requires_grad_())
        return weights

    def context(self, layer: int, context: Tensor) -> None:  # noqa: ARG002
        """Keep a layer's context."""
        self.contexts.append(context)


def _gradients_left(passage: _Passage) -> int:
    """Tokens that are to be read for the words that have no gradients yet."""
    return (len(passage.words) - len(passage.maps)) * len(passage.ids)


def _share(number: int, count: int) -> Tensor:
    """All of one, or an equal share of each: f32 [count]."""
    return torch.full((count,), 1 / count) if number < 0 else torch.eye(count)[number]
