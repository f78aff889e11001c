# SPDX-License-Identifier: Apache-2.0
"""Strategies for many requests at once, on the device: what blipstream.decoding.strategies does for one, in tensors.

A lane has slots, one a request, with equally many rows each. All that its step reads and writes lies in buffers that
stay in place, so that the step can be a CUDA graph: shapes are buckets, and what differs between requests is data.
Shapes below: S slots, W rows of each, V words, L tokens in the cache, H = L + 1 in the history.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from blipstream.cuda_graphs import Graphs, bucket
from blipstream.decoding.buffers import length_bucket, resized
from blipstream.decoding.engine import Request
from blipstream.decoding.strategies import NEVER, Draft, Sequence, draw, filter_distribution, uniforms
from blipstream.text.decoder import TextDecoder

SETTINGS = (  # of DecodingOptions, that a step reads
    "max_tokens",
    "min_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "length_penalty",
    "early_stopping",
    "temperature",
    "top_k",
    "top_p",
)
INFINITY = float("inf")


class Lane(ABC):
    """Requests that one strategy serves with `width` rows each."""

    def __init__(self, decoder: TextDecoder, width: int, num_patches: int) -> None:
        embedding = decoder.word_embedding.weight
        self._decoder = decoder
        self._width = width
        self._end_token_id = decoder.config.end_token_id
        self._graphs: Graphs[Tensor] = Graphs(embedding.device)
        self._requests: list[Request | None] = []  # by slot; None: free
        self._lengths: list[int] = []  # by slot: tokens in the cache
        self._buffers: dict[str, tuple[int, int | None]] = {}  # the axes of each that slots and tokens lie along
        keys, values = decoder.new_cache(0, 0)
        self._keys = self._buffer("_keys", keys[:, :, None].expand(-1, -1, width, -1, -1, -1), slots=1, tokens=4)
        self._values = self._buffer("_values", values[:, :, None].expand(-1, -1, width, -1, -1, -1), slots=1, tokens=4)
        self._image_embeds = self._buffer(
            "_image_embeds", embedding.new_zeros(0, num_patches, decoder.config.encoder_hidden_size)
        )
        self._settings = self._new("_settings", len(SETTINGS), dtype=torch.float64)
        self._prompt_length = self._new("_prompt_length")
        self._active = self._new("_active")  # 1 or 0
        self._past = self._new("_past")  # tokens in the cache
        self._tokens = self._new("_tokens", width)  # the newest of each row, not yet fed
        self._history = self._new("_history", width, 0, tokens=2)  # prompt and caption; beyond, the start token
        self._token_scores = self._new("_token_scores", width, 0, tokens=2, dtype=torch.float32)
        self._matches = self._new("_matches", width, 0, tokens=2)  # [p]: how many tokens before p equal the last ones

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self._width * sum(request is not None for request in self._requests)

    @property
    def room(self) -> int:
        """Tokens that it has room for, in use or not."""
        slots, length = self._size
        return slots * self._width * length

    def has_room(self, requests: list[Request]) -> bool:
        """Whether they find room in the buffers as these are."""
        slots, length = self._size
        rows = self.rows + self._width * len(requests)
        return rows <= slots * self._width and max(request.max_length for request in requests) <= length

    def shrink(self) -> None:
        """Give room back, where the requests under way need less than a quarter of it."""
        lengths = [request.max_length for request in self._requests if request]
        slots, length = (bucket(len(self._requests)), length_bucket(max(lengths))) if lengths else (0, 0)
        if 4 * slots * self._width * length < self.room:
            self._resize(slots, length)

    def add(self, requests: list[Request]) -> None:
        """Give each request a slot."""
        slots = [self._take_slot(request) for request in requests]
        self._reserve(len(self._requests), max(request.max_length for request in requests))
        self._fill(torch.tensor(slots, device=self._past.device), requests)
        prompted = [slot for slot in slots if self._lengths[slot]]
        if prompted:
            self._prefill(prompted)

    def step(self) -> Tensor:
        """Bring every row one token further. What `collect` reads comes back, f64, still on the device."""
        slots = bucket(len(self._requests))
        running = [request.options for request in self._requests if request]
        length = length_bucket(max(self._lengths) + 1)
        constrained = any(o.min_tokens or o.no_repeat_ngram_size or o.repetition_penalty != 1 for o in running)
        filtered = any(o.top_k or o.top_p < 1 for o in running)
        for slot, request in enumerate(self._requests):
            self._lengths[slot] += request is not None
        key = (slots, length, constrained, filtered)
        return self._graphs.run(key, lambda: self._decode_step(*key))

    def collect(self, report: Tensor) -> list[tuple[Request, list[Sequence]]]:
        """From a step's report, on the host, the requests that are finished; their slots become free."""
        finished, freed = [], []
        for slot, request in enumerate(self._requests):
            if request and report[slot, 0]:
                finished.append((request, self._sequences(request, report[slot, 1:])))
                freed.append(slot)
            elif request and request.draft:
                draft = self._sequences(request, report[slot, 1:])[0]
                request.draft = Draft(draft.ids, draft.token_scores, draft.sequence_score)
        self._vacate(freed)
        return finished

    def drop(self, request: Request) -> None:
        """Free the slot of a request, if it has one."""
        self._vacate([slot for slot, each in enumerate(self._requests) if each is request])

    @abstractmethod
    def _advance(self, logits: Tensor, context: "_Context") -> list[Tensor]:
        """From logits, f32 [S, W, V], choose and store what each row goes on with.

        Returns, for each slot: whether it is done [S]; for its captions: how many tokens they have [S, W], scores
        [S, W], history and token scores [S, W, H].
        """

    def _new_draft(self) -> Draft | None:
        """The beginning of a request's caption, where there is one caption and nothing in it will change."""
        return None

    @abstractmethod
    def _reset(self, slots: Tensor, requests: list[Request]) -> None:
        """Prepare what the strategy keeps for these slots."""

    # buffers

    def _new(self, name: str, *shape: int, tokens: int | None = None, dtype: torch.dtype = torch.int64) -> Tensor:
        buffer = torch.zeros(0, *shape, dtype=dtype, device=self._decoder.word_embedding.weight.device)
        return self._buffer(name, buffer, tokens=tokens)

    def _buffer(self, name: str, buffer: Tensor, slots: int = 0, tokens: int | None = None) -> Tensor:
        self._buffers[name] = (slots, tokens)
        return buffer

    @property
    def _size(self) -> tuple[int, int]:
        """Slots that there are, and tokens that the rows of each may come to."""
        return len(self._past), self._keys.shape[4]

    def _reserve(self, slots: int, length: int) -> None:
        """Make room for so many slots, and rows of `length` tokens."""
        old_slots, old_length = self._size
        if slots > old_slots or length > old_length:
            self._resize(max(bucket(slots), old_slots), max(length_bucket(length), old_length))

    def _resize(self, slots: int, length: int) -> None:
        """Move to buffers of another size, which ends the graphs."""
        old_slots, old_length = self._size
        self._graphs.clear()
        for name, (slot_axis, token_axis) in self._buffers.items():
            old: Tensor = getattr(self, name)
            shape = list(old.shape)
            shape[slot_axis] = slots
            if token_axis is not None:
                shape[token_axis] = length if name in ("_keys", "_values") else length + 1
            setattr(self, name, resized(old, shape))
        self._settings[old_slots:] = 1  # nothing may be divided by zero, not even in slots that nobody uses
        self._history[:, :, old_length + 1 :] = self._decoder.config.start_token_id  # as `_fill` pads it

    def _take_slot(self, request: Request) -> int:
        if None not in self._requests:
            self._requests.append(None)
            self._lengths.append(0)
        slot = self._requests.index(None)
        self._requests[slot] = request
        self._lengths[slot] = len(request.prompt_ids) - 1
        request.draft = self._new_draft()
        return slot

    def _fill(self, slots: Tensor, requests: list[Request]) -> None:
        """Write what the step reads of each request."""
        device, length = slots.device, self._history.shape[2]
        prompts = [request.prompt_ids for request in requests]
        # a token of the prompt as padding: what the constraints do to it is done already
        history = torch.tensor([prompt + prompt[:1] * (length - len(prompt)) for prompt in prompts], device=device)
        matches = [
            _suffix_matches(request.prompt_ids, length) if request.options.no_repeat_ngram_size else [0] * length
            for request in requests
        ]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        settings = [[float(getattr(request.options, name)) for name in SETTINGS] for request in requests]
        for cache in (self._keys, self._values):
            cache[:, slots] = 0  # what is no number would get through the mask: 0 x NaN is NaN
        self._image_embeds[slots] = torch.stack([request.image_embeds for request in requests]).to(self._image_embeds)
        self._settings[slots] = torch.tensor(settings, dtype=torch.float64, device=device)
        self._prompt_length[slots] = lengths
        self._active[slots] = 1
        self._past[slots] = lengths - 1
        self._tokens[slots] = history.gather(1, lengths[:, None] - 1)
        self._history[slots] = history[:, None]
        self._matches[slots] = torch.tensor(matches, device=device)[:, None]
        self._reset(slots, requests)

    def _vacate(self, slots: list[int]) -> None:
        """Make slots free for other requests."""
        if slots:
            for slot in slots:
                self._requests[slot] = None
            self._free(slots)
            self._close_gaps()

    def _free(self, slots: list[int]) -> None:
        """Leave what is harmless where nobody reads it: a step runs over free slots, too."""
        index = torch.tensor(slots, device=self._past.device)
        self._active[index] = 0
        self._past[index] = 0
        self._prompt_length[index] = 1
        for slot in slots:
            self._lengths[slot] = 0

    def _close_gaps(self) -> None:
        """Move the last requests into free slots if that makes the next step smaller."""
        while self._requests and self._requests[-1] is None:
            self._requests.pop()
        count = sum(request is not None for request in self._requests)
        if count and bucket(count) < bucket(len(self._requests)):
            targets = [slot for slot, request in enumerate(self._requests[:count]) if request is None]
            sources = [slot for slot, request in enumerate(self._requests) if request and slot >= count]
            for name, (slot_axis, _) in self._buffers.items():
                by_slot = getattr(self, name).transpose(0, slot_axis)
                by_slot[targets] = by_slot[sources]
            for target, source in zip(targets, sources, strict=True):
                self._requests[target], self._lengths[target] = self._requests[source], self._lengths[source]
            self._free(sources)
            del self._requests[count:]
        del self._lengths[len(self._requests) :]

    # the forward

    def _prefill(self, slots: list[int]) -> None:
        """Feed the prompts but their last tokens, a row each, whatever their lengths; all rows of a slot start so."""
        lengths = [self._lengths[slot] for slot in slots]
        count, longest = len(slots), max(lengths)
        ids = self._history[slots, 0, :longest]
        keys, values = self._decoder.new_cache(count, longest)
        past = torch.zeros(count, dtype=torch.int64, device=ids.device)
        self._decoder.hidden(ids, past, longest, self._image_embeds[slots], [(count, 1)], keys, values)
        # beyond a shorter prompt lies what is overwritten before it is looked at
        self._keys[:, slots, :, :, :longest] = keys[:, :, None]
        self._values[:, slots, :, :, :longest] = values[:, :, None]

    def _decode_step(self, slots: int, length: int, constrained: bool, filtered: bool) -> Tensor:
        """From each row's newest token to the next one; this is what becomes a graph."""
        past = self._past[:slots]
        hidden = self._decoder.hidden(
            self._tokens[:slots].view(-1, 1),
            past[:, None].expand(-1, self._width).reshape(-1),
            length,
            self._image_embeds[:slots],
            [(slots, self._width)],
            self._keys[:, :slots].flatten(1, 2),
            self._values[:, :slots].flatten(1, 2),
        )
        logits = self._decoder.logits(hidden[:, 0]).view(slots, self._width, -1)
        context = _Context(self, slots, length, constrained, filtered)
        results = self._advance(logits, context)
        past += self._active[:slots]
        return torch.cat([result.double().reshape(slots, -1) for result in results], dim=1)

    def _constrain(self, scores: Tensor, context: "_Context") -> None:
        """What blipstream.decoding.strategies.constrain does, for all rows, in place."""
        if not context.constrained:
            return
        history = context.history
        penalty = context.setting("repetition_penalty")[:, None, None].float()
        chosen = scores.gather(2, history)
        scores.scatter_(2, history, torch.where(chosen < 0, chosen * penalty, chosen / penalty))
        size = context.setting("no_repeat_ngram_size")[:, None, None]
        there = torch.arange(history.shape[2], device=history.device) < context.known[:, None, None]
        repeats = (size > 0) & there & (context.matches >= size - 1)
        banned = torch.where(repeats, -INFINITY, INFINITY).to(scores.dtype)
        scores.scatter_reduce_(2, history, banned, "amin")
        too_early = context.generated < context.setting("min_tokens")
        end = scores[:, :, self._end_token_id]
        end.masked_fill_(too_early[:, None], -INFINITY)

    def _append(self, tokens: Tensor, token_scores: Tensor, context: "_Context") -> None:
        """Add a token, [S, W], to each row's history; it is fed next."""
        if context.constrained:
            equal = context.history[:, :, :-1] == tokens[:, :, None]
            context.matches[:, :, 1:] = torch.where(equal, context.matches[:, :, :-1] + 1, 0)
        position = context.known[:, None, None].expand(-1, self._width, 1)
        context.history.scatter_(2, position, tokens[:, :, None])
        context.token_scores.scatter_(2, position, token_scores[:, :, None])
        self._tokens[: len(tokens)] = tokens

    def _sequences(self, request: Request, report: Tensor) -> list[Sequence]:
        """The captions of one slot, from what `_advance` returned for it."""
        width, start = self._width, len(request.prompt_ids)
        lengths, scores = report[: 2 * width].view(2, width)
        history, token_scores = report[2 * width :].view(2, width, -1)
        sequences = [
            Sequence(
                history[row, start : start + length].long().tolist(),
                token_scores[row, start : start + length].tolist(),
                score,
            )
            for row, (length, score) in enumerate(zip(lengths.long().tolist(), scores.tolist(), strict=True))
        ]
        sequences.sort(key=lambda sequence: -sequence.sequence_score)
        return sequences[: request.options.num_captions]


class _Context:
    """The part of a lane's buffers that one step works on."""

    def __init__(self, lane: Lane, slots: int, length: int, constrained: bool, filtered: bool) -> None:
        self.slots = slots
        self.length = length
        self.constrained = constrained  # whether any request has constraints
        self.filtered = filtered  # whether any request draws from less than the whole vocabulary
        self.history = lane._history[:slots, :, : length + 1]
        self.token_scores = lane._token_scores[:slots, :, : length + 1]
        self.matches = lane._matches[:slots, :, : length + 1]
        self.known = lane._past[:slots] + 1  # tokens in the history
        self.generated = self.known - lane._prompt_length[:slots]
        self._settings = lane._settings[:slots]

    def setting(self, name: str) -> Tensor:
        """An option of each request, f64 [S]."""
        return self._settings[:, SETTINGS.index(name)]


class _TokenLane(Lane):
    """Rows that grow on their own, each until its caption ends."""

    def __init__(self, decoder: TextDecoder, width: int, num_patches: int) -> None:
        super().__init__(decoder, width, num_patches)
        self._growing = self._new("_growing", width, dtype=torch.bool)
        self._ends = self._new("_ends", width)  # tokens that the caption has come to
        self._totals = self._new("_totals", width, dtype=torch.float64)

    def _reset(self, slots: Tensor, requests: list[Request]) -> None:  # noqa: ARG002
        self._growing[slots] = True
        self._ends[slots] = 0
        self._totals[slots] = 0

    def _new_draft(self) -> Draft | None:
        return Draft() if self._width == 1 else None

    @abstractmethod
    def _choose(self, scores: Tensor, context: _Context) -> tuple[Tensor, Tensor]:
        """The next token of each row and its log-probability, both [S, W], from constrained scores, f32 [S, W, V]."""

    def _advance(self, logits: Tensor, context: _Context) -> list[Tensor]:
        slots = context.slots
        growing, ends, totals = self._growing[:slots], self._ends[:slots], self._totals[:slots]
        self._constrain(logits, context)
        tokens, token_scores = self._choose(logits, context)
        self._append(tokens, token_scores, context)
        ends += growing
        totals += token_scores * growing
        full = context.generated + 1 == context.setting("max_tokens")
        growing &= ~((tokens == self._end_token_id) | full[:, None])
        return [~growing.any(1), ends, totals, context.history, context.token_scores]


class GreedyLane(_TokenLane):
    """The most probable token, each time."""

    def _choose(self, scores: Tensor, context: _Context) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        tokens = scores.argmax(-1)
        return tokens, scores.gather(2, tokens[:, :, None])[:, :, 0] - scores.logsumexp(-1)


class SampleLane(_TokenLane):
    """Tokens drawn from the filtered distribution."""

    def __init__(self, decoder: TextDecoder, width: int, num_patches: int) -> None:
        super().__init__(decoder, width, num_patches)
        self._uniforms = self._new("_uniforms", width, 0, tokens=2, dtype=torch.float32)

    def _reset(self, slots: Tensor, requests: list[Request]) -> None:
        super()._reset(slots, requests)
        for slot, request in zip(slots.tolist(), requests, strict=True):
            drawn = uniforms(request.options)
            self._uniforms[slot, :, : drawn.shape[1]] = drawn

    def _choose(self, scores: Tensor, context: _Context) -> tuple[Tensor, Tensor]:
        def by_row(name: str) -> Tensor:
            return context.setting(name)[:, None].expand(-1, self._width).reshape(-1, 1)

        top_k, top_p = (by_row("top_k").long(), by_row("top_p")) if context.filtered else (None, None)
        probabilities = filter_distribution(scores.flatten(0, 1), by_row("temperature"), top_k, top_p)
        place = context.generated[:, None, None].expand(-1, self._width, 1)
        uniform = self._uniforms[: context.slots].gather(2, place).view(-1)
        tokens = draw(probabilities, uniform)
        token_scores = probabilities.gather(1, tokens[:, None])[:, 0].log()
        shape = (context.slots, self._width)
        return tokens.view(shape), token_scores.view(shape)


class BeamLane(Lane):
    """Beam search, as blipstream.decoding.strategies.BeamSearch has it."""

    def __init__(self, decoder: TextDecoder, width: int, num_patches: int) -> None:
        super().__init__(decoder, width, num_patches)
        self._totals = self._new("_totals", width, dtype=torch.float32)  # of the running beams
        # the captions that are complete, best first; -infinity: none yet
        self._best_scores = self._new("_best_scores", width, dtype=torch.float64)
        self._best_ends = self._new("_best_ends", width)
        self._best_history = self._new("_best_history", width, 0, tokens=2)
        self._best_token_scores = self._new("_best_token_scores", width, 0, tokens=2, dtype=torch.float32)

    def _reset(self, slots: Tensor, requests: list[Request]) -> None:  # noqa: ARG002
        self._totals[slots] = NEVER
        self._totals[slots, 0] = 0  # all beams are the prompt: one of them counts
        self._best_scores[slots] = -INFINITY

    def _advance(self, logits: Tensor, context: _Context) -> list[Tensor]:
        slots, width, vocabulary = context.slots, self._width, logits.shape[2]
        log_probs = logits.log_softmax(-1)
        self._constrain(log_probs, context)
        # twice as many as beams: even if every beam ends, enough are left to go on with
        totals, index = (log_probs + self._totals[:slots, :, None]).flatten(1).topk(2 * width)
        parents, tokens = index // vocabulary, index % vocabulary
        token_scores = log_probs.flatten(1).gather(1, index)
        generated = context.generated + 1
        full = generated == context.setting("max_tokens")
        complete = (tokens == self._end_token_id) | full[:, None]

        norm = generated.double() ** context.setting("length_penalty")
        early = context.setting("early_stopping") > 0
        self._complete(totals / norm[:, None], parents, tokens, token_scores, complete, early, context)
        best = self._best_scores[:slots]

        running = complete.sort(dim=1, stable=True).indices[:, :width]  # the first that go on
        totals, parents, tokens, token_scores = (
            each.gather(1, running) for each in (totals, parents, tokens, token_scores)
        )
        self._totals[:slots] = totals
        self._reorder(parents, context)
        self._append(tokens, token_scores, context)

        enough = best[:, -1] > -INFINITY
        hopeless = early | (totals[:, 0] / norm <= best[:, -1])
        done = full | (enough & hopeless)
        return [
            done,
            self._best_ends[:slots],
            best,
            self._best_history[:slots, :, : context.length + 1],
            self._best_token_scores[:slots, :, : context.length + 1],
        ]

    def _complete(
        self,
        scores: Tensor,
        parents: Tensor,
        tokens: Tensor,
        token_scores: Tensor,
        complete: Tensor,
        early: Tensor,
        context: _Context,
    ) -> None:
        """Let the candidates that are complete, [S, 2 W], compete for the places of the best."""
        slots, width, h = context.slots, self._width, context.length + 1
        best = self._best_scores[:slots]
        # the candidates behind the first W are there to go on, not to win
        closed = early & (best[:, -1] > -INFINITY)
        new = torch.where(complete & ~closed[:, None], scores, -INFINITY)[:, :width]
        places = torch.cat([best, new], 1).sort(dim=1, descending=True, stable=True)
        order = places.indices[:, :width]
        row = parents[:, :width, None].expand(-1, -1, h)
        position = context.known[:, None, None].expand(-1, width, 1)

        def merged(old: Tensor, parent: Tensor, last: Tensor) -> Tensor:
            grown = parent.gather(1, row).scatter(2, position, last[:, :width, None])
            return torch.cat([old, grown], 1).gather(1, order[:, :, None].expand(-1, -1, h))

        history, old_scores = self._best_history[:slots, :, :h], self._best_token_scores[:slots, :, :h]
        history.copy_(merged(history, context.history, tokens))
        old_scores.copy_(merged(old_scores, context.token_scores, token_scores))
        ends = (context.generated + 1)[:, None].expand(-1, width)
        self._best_ends[:slots] = torch.cat([self._best_ends[:slots], ends], 1).gather(1, order)
        best.copy_(places.values[:, :width])

    def _reorder(self, parents: Tensor, context: _Context) -> None:
        """Let row w of each slot go on from what row parents[s, w] was."""
        slots = context.slots
        slot = torch.arange(slots, device=parents.device)[:, None]
        for cache in (self._keys, self._values):
            cache[:, :slots, :, :, : context.length] = cache[:, slot, parents, :, : context.length]
        for rows in (context.history, context.token_scores, *([context.matches] if context.constrained else [])):
            rows.copy_(rows[slot, parents])


LANES: dict[str, type[Lane]] = {"greedy": GreedyLane, "sample": SampleLane, "beam": BeamLane}  # by options.strategy


def _suffix_matches(ids: list[int], length: int) -> list[int]:
    """For each place p in `ids`, how many tokens before it equal as many of the last ones; [length]."""
    matches = [0] * length
    for p in range(1, len(ids)):
        while matches[p] < p and ids[p - 1 - matches[p]] == ids[-1 - matches[p]]:
            matches[p] += 1
    return matches
