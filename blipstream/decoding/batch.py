# SPDX-License-Identifier: Apache-2.0
"""Requests of one strategy and width, which decode together.

A batch has a slot for each request. All that a step reads and writes lies in the buffers of the slots. There are two
ways to make a step:

- `segments`, a forward over the segments of all batches, and `advance`: only what grows is computed. For CPUs.
- `fixed_step`: all slots are computed, in sizes that repeat, and what differs between requests is data. So the step can
  be a CUDA graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from blipstream.cuda_graphs import Graphs, bucket
from blipstream.decoding.features import Features
from blipstream.decoding.history import History
from blipstream.decoding.request import Request, TokenSequence
from blipstream.decoding.slots import OptionColumns, SlotTensors, length_bucket, resized
from blipstream.decoding.strategies import STRATEGIES, Inputs, StepReport, Strategy
from blipstream.text.decoder import Segment, TextDecoder


@dataclass(eq=False)
class Slot:
    """Where a request lies in the buffers of its batch."""

    request: Request
    length: int  # tokens in the cache of each of its rows


@dataclass(eq=False)
class SlotBuffers:
    """What a step reads and writes. L: tokens that the cache has room for; the history has H = L + 1."""

    keys: Tensor  # [S, W, layers, heads, L, head size]
    values: Tensor  # the same
    image_embeds: Tensor  # [S, N, E]
    active: Tensor  # int64 [S], 1 in a slot that is in use, else 0
    history: History
    options: OptionColumns
    state: SlotTensors  # the strategy's

    @classmethod
    def empty(cls, decoder: TextDecoder, width: int, num_patches: int, strategy: Strategy[Any]) -> "SlotBuffers":
        """Without slots."""
        keys, _ = decoder.new_cache(0, 0)
        device = keys.device
        layers, _, heads, _, head_size = keys.shape
        keys = keys.new_zeros(0, width, layers, heads, 0, head_size)
        image_embeds = keys.new_zeros(0, num_patches, decoder.config.encoder_hidden_size)
        active = torch.zeros(0, dtype=torch.int64, device=device)
        history = History.of([], width, 1).map(lambda tensor: tensor.to(device))
        options = OptionColumns.of([]).map(lambda tensor: tensor.to(device))
        state: SlotTensors = strategy.new_state([], width, 1).map(lambda tensor: tensor.to(device))
        return cls(keys, torch.zeros_like(keys), image_embeds, active, history, options, state)

    def resized(self, slots: int, length: int) -> "SlotBuffers":
        """A copy with that many slots, and room for `length` tokens."""
        cache = (slots, *self.keys.shape[1:4], length, self.keys.shape[5])
        return SlotBuffers(
            resized(self.keys, cache),
            resized(self.values, cache),
            resized(self.image_embeds, (slots, *self.image_embeds.shape[1:])),
            resized(self.active, (slots,)),
            self.history.resized(slots, length + 1),
            self.options.resized(slots, length + 1),
            self.state.resized(slots, length + 1),
        )

    def move(self, targets: list[int], sources: list[int]) -> None:
        """Copy slots to other slots."""
        records = (self.history, self.options, self.state)
        tensors = [self.keys, self.values, self.image_embeds, self.active]
        for tensor in tensors + [tensor for record in records for tensor in record.tensors()]:
            tensor[targets] = tensor[sources]


class Batch:
    """Requests that decode together, with `width` rows each. `fixed_shapes`: whether `fixed_step` makes their steps."""

    def __init__(
        self, decoder: TextDecoder, strategy: str, width: int, num_patches: int, *, fixed_shapes: bool
    ) -> None:
        self._decoder = decoder
        self._width = width
        self._fixed_shapes = fixed_shapes
        self._strategy: Strategy[Any] = STRATEGIES[strategy](decoder.config.end_token_id)
        self._device = decoder.word_embedding.weight.device
        self._graphs: Graphs[StepReport] = Graphs(self._device)
        self._slots: list[Slot | None] = []  # None: free; without fixed shapes, none is
        self._num_new = 0  # of the last slots, whose prompts were not fed yet
        self._buffers = SlotBuffers.empty(decoder, width, num_patches, self._strategy)

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self._width * len(self._in_use)

    @property
    def room(self) -> int:
        """Tokens that the buffers have room for, in use or not."""
        slots, length = self._size
        return slots * self._width * length

    def has_room(self, requests: list[Request]) -> bool:
        """Whether the requests fit the buffers as these are."""
        slots, length = self._size
        fits = max(request.max_length for request in requests) <= length
        return fits and len(self._in_use) + len(requests) <= slots

    def shrink(self) -> None:
        """Give room back, if less than a quarter of it is needed."""
        lengths = [slot.request.max_length for slot in self._in_use]
        slots, length = (bucket(len(self._slots)), length_bucket(max(lengths))) if lengths else (0, 0)
        if 4 * slots * self._width * length < self.room:
            self._resize(slots, length)

    def add(self, requests: list[Request]) -> None:
        """Give each request a slot."""
        slots = [self._take_slot(request) for request in requests]
        old_slots, old_length = self._size
        length = max(request.max_length for request in requests)
        if len(self._slots) > old_slots or length > old_length:
            self._resize(max(bucket(len(self._slots)), old_slots), max(length_bucket(length), old_length))
        self._fill(slots, requests)
        if self._fixed_shapes:
            self._prefill([slot for slot, request in zip(slots, requests, strict=True) if len(request.prompt_ids) > 1])
        else:
            self._num_new += len(requests)

    def remove(self, request: Request) -> None:
        """Free the slot of a request, if it has one."""
        self._vacate([index for index, slot in enumerate(self._slots) if slot and slot.request is request])

    @property
    def slots(self) -> list[Slot | None]:
        """All slots, in the order of the next step's report."""
        return list(self._slots)

    def collect(self, slots: Sequence[Slot | None], report: StepReport) -> list[Request]:
        """Read the report, on the host, of a step over `slots`.

        Requests that are finished get their sequences and leave. What has left or come since has no part in it.
        """
        finished, freed = [], []
        places = {slot: index for index, slot in enumerate(self._slots) if slot}
        done, lengths, scores = (part.tolist() for part in report[:3])

        def sequence(slot: int, row: int, start: int) -> TokenSequence:
            part = slice(start, start + lengths[slot][row])
            ids, token_scores = report.ids[slot, row, part], report.token_scores[slot, row, part]
            return TokenSequence(ids.tolist(), token_scores.tolist(), scores[slot][row])

        for index, slot in enumerate(slots):
            if slot not in places:
                continue
            request, start = slot.request, len(slot.request.prompt_ids)
            if done[index]:
                sequences = [sequence(index, row, start) for row in range(self._width)]
                sequences.sort(key=lambda each: -each.score)
                request.sequences = sequences[: request.options.num_captions]
                finished.append(request)
                freed.append(places[slot])
            elif request.streams and self._strategy.tokens_are_final and self._width == 1:
                request.draft = sequence(index, 0, start)
        self._vacate(freed)
        return finished

    # a step over what grows

    def segments(self) -> list[Segment]:
        """What the next forward runs over: the newest token of each row that grows, and the prompts of new slots."""
        slots = self._in_use
        old = len(slots) - self._num_new
        return [
            *([self._growing_rows(old, 1 + max(slot.length for slot in slots[:old]))] if old else []),
            *([self._prompts(old, 1 + max(slot.length for slot in slots[old:]))] if self._num_new else []),
        ]

    def advance(self, logits: Sequence[Tensor]) -> StepReport:
        """Choose the next tokens by the logits, f32 [R, V], of each segment. The report's tensors are views."""
        slots = self._in_use
        count, old = len(slots), len(slots) - self._num_new
        rows = torch.cat(list(logits)) if len(logits) > 1 else logits[0]
        if self._width > 1 and len(rows) < count * self._width:
            rows = rows[self._places(old, count)]
        if self._num_new and self._width > 1:  # all rows of a new slot begin with its prompt
            longest = 1 + max(slot.length for slot in slots[old:])
            for cache in (self._buffers.keys, self._buffers.values):
                cache[old:count, 1:, :, :, :longest] = cache[old:count, :1, :, :, :longest]
        self._num_new = 0
        features, length = self._features(), 1 + max(slot.length for slot in slots)
        for slot in slots:
            slot.length += 1
        return self._choose(rows.view(count, self._width, -1), length, features)

    def _growing(self, slots: int) -> Tensor | None:
        """Which rows of the first slots grow, bool [slots, W]; None: all."""
        growing = self._strategy.growing(self._buffers.state.first(slots, 0))
        return None if growing is None or self._width == 1 or bool(growing.all()) else growing

    def _growing_rows(self, slots: int, length: int) -> Segment:
        buffers, growing = self._buffers, self._growing(slots)
        history = buffers.history.first(slots, length)
        ids, past = history.newest().view(-1, 1), (history.lengths - 1)[:, None].expand(-1, self._width).reshape(-1)
        groups, rows = [(slots, self._width)], None
        if growing is not None:
            groups = [(len(list(equal)), rows) for rows, equal in groupby(growing.sum(1).tolist())]
            rows = growing.view(-1).nonzero()[:, 0]
            ids, past = ids[rows], past[rows]
        keys, values = (cache.flatten(0, 1).transpose(0, 1) for cache in (buffers.keys, buffers.values))
        return Segment(ids, past, length, buffers.image_embeds[:slots], groups, keys, values, rows)

    def _prompts(self, first: int, length: int) -> Segment:
        """The prompts of the slots from `first` on, a row each, whatever their lengths."""
        new = slice(first, len(self._slots))
        buffers = self._buffers
        counts = buffers.history.lengths[new]
        keys, values = (cache[new, 0].transpose(0, 1) for cache in (buffers.keys, buffers.values))
        return Segment(
            ids=buffers.history.ids[new, 0, :length],
            past=torch.zeros_like(counts),
            length=length,
            image_embeds=buffers.image_embeds[new],
            groups=[(len(counts), 1)],
            keys=keys,
            values=values,
            counts=counts,
        )

    def _places(self, old: int, count: int) -> Tensor:
        """For each row of the slots, its row in the segments' logits, int64 [S * W]; arbitrary if it has ended."""
        places = torch.zeros(count, self._width, dtype=torch.int64)
        growing = self._growing(old)
        mask = torch.ones(old, self._width, dtype=torch.bool) if growing is None else growing
        rows = int(mask.sum())
        places[:old][mask] = torch.arange(rows)
        places[old:] = torch.arange(rows, rows + count - old)[:, None]
        return places.view(-1)

    # a step over all slots

    @property
    def goes_on(self) -> bool:
        """Whether any request may need another step."""
        return any(slot.length < slot.request.max_length for slot in self._in_use)

    def fixed_step(self) -> StepReport:
        """Bring every row one token further. The report lies on the device.

        Requests that are finished may take part until they are collected: nobody reads what becomes of them.
        """
        length = min(length_bucket(1 + max(slot.length for slot in self._in_use)), self._size[1])
        for slot in self._in_use:
            slot.length += 1
        features = self._features()
        key = (bucket(len(self._slots)), length, features.constraints, features.filters)
        return self._graphs.run(key, lambda: self._fixed_step(*key))

    def _fixed_step(self, slots: int, length: int, constrained: bool, filtered: bool) -> StepReport:
        """From each row's newest token to the next one: this becomes a graph."""
        buffers, history = self._buffers, self._buffers.history.first(slots, length + 1)
        segment = Segment(
            history.newest().view(-1, 1),
            (history.lengths - 1)[:, None].expand(-1, self._width).reshape(-1),
            length,
            buffers.image_embeds[:slots],
            [(slots, self._width)],
            *(cache[:slots].flatten(0, 1).transpose(0, 1) for cache in (buffers.keys, buffers.values)),
        )
        (logits,) = self._decoder([segment])
        return self._choose(logits.view(slots, self._width, -1), length, Features.every(constrained, filtered))

    def _prefill(self, slots: list[int]) -> None:
        """Feed prompts without their last tokens, a row for each, of any lengths; all rows of a slot begin with it."""
        if not slots:
            return
        buffers = self._buffers
        lengths = [slot.length for slot in (self._slots[index] for index in slots) if slot]
        count, longest = len(slots), max(lengths)
        keys, values = self._decoder.new_cache(count, longest)
        past = torch.zeros(count, dtype=torch.int64, device=self._device)
        ids, image_embeds = buffers.history.ids[slots, 0, :longest], buffers.image_embeds[slots]
        self._decoder.hidden([Segment(ids, past, longest, image_embeds, [(count, 1)], keys, values)])
        # behind a shorter prompt lies what is overwritten before anybody looks at it
        buffers.keys[slots, :, :, :, :longest] = keys.transpose(0, 1)[:, None]
        buffers.values[slots, :, :, :, :longest] = values.transpose(0, 1)[:, None]

    # both

    def _features(self) -> Features:
        return Features.of(slot.request.options for slot in self._in_use)

    def _choose(self, logits: Tensor, length: int, features: Features) -> StepReport:
        """Append to each row what the strategy chooses by logits, f32 [S, W, V]; `length` tokens are in the cache."""
        slots, positions = len(logits), length + 1
        history = self._buffers.history.first(slots, positions)
        options = self._buffers.options.first(slots, positions)
        state = self._buffers.state.first(slots, positions)
        choice = self._strategy.choose(Inputs(logits, history, options, features, self._fixed_shapes), state)
        state.store(choice.state)
        if choice.parents is not None:
            self._reorder(choice.parents, length)
            history.reorder(choice.parents, ngrams=features.ngrams)
        history.append(choice.tokens, choice.token_scores, ngrams=features.ngrams)
        history.lengths += self._buffers.active[:slots] * ~choice.done  # what is finished stays where there is room
        return self._strategy.report(choice.done, history, state)

    def _reorder(self, parents: Tensor, length: int) -> None:
        """Let row w of each slot s go on from the keys and values of row parents[s, w]."""
        slots = len(parents)
        slot = torch.arange(slots, device=self._device)[:, None]
        for cache in (self._buffers.keys, self._buffers.values):
            if self._fixed_shapes:
                cache[:slots, :, :, :, :length] = cache[slot, parents, :, :, :length]
            else:
                moved, row = torch.where(parents != torch.arange(self._width))
                cache[moved, row, :, :, :length] = cache[moved, parents[moved, row], :, :, :length]

    # slots

    @property
    def _in_use(self) -> list[Slot]:
        return [slot for slot in self._slots if slot]

    @property
    def _size(self) -> tuple[int, int]:
        """Slots that there are, and tokens that each of their rows has room for."""
        return self._buffers.keys.shape[0], self._buffers.keys.shape[4]

    def _resize(self, slots: int, length: int) -> None:
        """Move to buffers of another size, which ends the graphs."""
        old_slots, old_length = self._size
        self._graphs.clear()
        self._buffers = self._buffers.resized(slots, length)
        self._free(range(old_slots, slots))
        self._buffers.history.ids[:, :, old_length + 1 :] = self._decoder.config.start_token_id  # as History pads it

    def _take_slot(self, request: Request) -> int:
        if None not in self._slots:
            self._slots.append(None)
        index = self._slots.index(None)
        self._slots[index] = Slot(request, len(request.prompt_ids) - 1)
        return index

    def _fill(self, slots: list[int], requests: list[Request]) -> None:
        """Write what a step reads of each request."""
        buffers, positions = self._buffers, self._size[1] + 1
        index = torch.tensor(slots, device=self._device)
        for cache in (buffers.keys, buffers.values):
            cache[index] = 0  # a NaN would get through the mask: 0 x NaN is NaN
        buffers.image_embeds[index] = torch.stack([each.image_embeds for each in requests]).to(buffers.image_embeds)
        buffers.active[index] = 1
        buffers.history.put(index, History.of(requests, self._width, positions))
        buffers.options.put(index, OptionColumns.of([request.options for request in requests]))
        buffers.state.put(index, self._strategy.new_state(requests, self._width, positions))

    def _vacate(self, slots: list[int]) -> None:
        """Make slots free for other requests."""
        if slots:
            for slot in slots:
                self._slots[slot] = None
            self._free(slots)
            self._close_gaps()

    def _free(self, slots: Sequence[int]) -> None:
        """Write harmless numbers to slots that nobody reads, since a fixed step runs over them, too."""
        index = torch.tensor(list(slots), dtype=torch.int64, device=self._device)
        self._buffers.active[index] = 0
        self._buffers.history.lengths[index] = 1
        self._buffers.history.prompt_lengths[index] = 1
        self._buffers.options.values[index] = 1  # nothing is divided by zero

    def _close_gaps(self) -> None:
        """Move the last requests into free slots, if that makes the next step smaller."""
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        count = len(self._in_use)
        size = bucket if self._fixed_shapes else int
        if size(count) < size(len(self._slots)):
            targets = [index for index, slot in enumerate(self._slots[:count]) if not slot]
            sources = [index for index, slot in enumerate(self._slots) if slot and index >= count]
            self._buffers.move(targets, sources)
            for target, source in zip(targets, sources, strict=True):
                self._slots[target] = self._slots[source]
            self._free(sources)
            del self._slots[count:]
