# SPDX-License-Identifier: Apache-2.0
"""Requests of one strategy, width and size of vocabulary, which decode together.

A batch has a slot for each request. All that a step reads and writes lies in the buffers of the slots. There are two
ways to make a step:

- `segments`, a forward over the segments of all batches, and `advance`: only what grows is computed. For CPUs.
- `fixed_step`: all slots are computed, in sizes that repeat, and what differs between requests is data. So the step can
  be a CUDA graph.

What the host has to know of each slot in a step lies in one numpy array, so that no step loops over slots in Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blipstream.cuda_graphs import Graphs, bucket
from blipstream.decoding.features import Features
from blipstream.decoding.history import History
from blipstream.decoding.request import Request, TokenSequence
from blipstream.decoding.slots import OptionColumns, SlotTensors, length_bucket, resized, to_device
from blipstream.decoding.strategies import STRATEGIES, Inputs, StepReport, Strategy
from blipstream.text.decoder import Segment, TextDecoder

# What the host knows of each slot; all zeros if it is free
SLOT = np.dtype(
    [
        ("length", np.int64),  # tokens in the cache of each of its rows
        ("max_length", np.int64),  # the most that there can be: 1 or more
        ("features", np.bool_, len(Features._fields)),
        ("streams", np.bool_),  # whether drafts of its caption are wanted
        ("adapted", np.bool_),  # whether it has an adapter
    ]
)


@dataclass(eq=False)
class Slot:
    """Where a request lies in the buffers of its batch."""

    request: Request
    place: int  # -1 once it has left


@dataclass(eq=False)
class SlotBuffers:
    """What a step reads and writes. L: tokens that the cache has room for; the history has H = L + 1."""

    keys: Tensor  # [S, W, layers, heads, L, head size]
    values: Tensor  # the same
    image_embeds: Tensor  # [S, N, E]
    active: Tensor  # int64 [S], 1 in a slot that is in use, else 0
    adapters: Tensor  # int64 [S], places in the decoder's stack of adapters; 0: none
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
        return cls(keys, torch.zeros_like(keys), image_embeds, active, active.clone(), history, options, state)

    def resized(self, slots: int, length: int) -> "SlotBuffers":
        """A copy with that many slots, and room for `length` tokens."""
        cache = (slots, *self.keys.shape[1:4], length, self.keys.shape[5])
        return SlotBuffers(
            resized(self.keys, cache),
            resized(self.values, cache),
            resized(self.image_embeds, (slots, *self.image_embeds.shape[1:])),
            resized(self.active, (slots,)),
            resized(self.adapters, (slots,)),
            self.history.resized(slots, length + 1),
            self.options.resized(slots, length + 1),
            self.state.resized(slots, length + 1),
        )

    def move(self, targets: Tensor, sources: Tensor) -> None:
        """Copy slots, int64 [n], to other slots."""
        records = (self.history, self.options, self.state)
        tensors = [self.keys, self.values, self.image_embeds, self.active, self.adapters]
        for tensor in tensors + [tensor for record in records for tensor in record.tensors()]:
            tensor[targets] = tensor[sources]


class Batch:
    """Requests that decode together, with `width` rows each. `fixed_shapes`: whether `fixed_step` makes their steps."""

    def __init__(
        self,
        decoder: TextDecoder,
        strategy: str,
        width: int,
        added_words: int,
        num_patches: int,
        *,
        fixed_shapes: bool,
        patch_multiple: int = 1,
    ) -> None:
        """Logits have room for `added_words`, as in Segment.

        image_embeds have `num_patches`, and zeros behind them up to a multiple of `patch_multiple`.
        """
        self._decoder = decoder
        self._width = width
        self._added_words = added_words
        self._fixed_shapes = fixed_shapes
        self._strategy: Strategy[Any] = STRATEGIES[strategy](decoder.config.end_token_id)
        self._device = decoder.word_embedding.weight.device
        self._graphs: Graphs[StepReport] = Graphs(self._device)
        self._slots: list[Slot | None] = []  # None: free; without fixed shapes, none is
        self._table = np.zeros(0, SLOT)  # of as many slots as the buffers have
        self._num_new = 0  # of the last slots, whose prompts were not fed yet
        self._patches = num_patches
        padded = -(-num_patches // patch_multiple) * patch_multiple
        self._buffers = SlotBuffers.empty(decoder, width, padded, self._strategy)

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self._width * self._count

    @property
    def room(self) -> int:
        """Tokens that the buffers have room for, in use or not."""
        slots, length = self._size
        return slots * self._width * length

    def has_room(self, requests: list[Request]) -> bool:
        """Whether the requests fit the buffers as these are."""
        slots, length = self._size
        fits = max(request.max_length for request in requests) <= length
        return fits and self._count + len(requests) <= slots

    def shrink(self) -> None:
        """Give room back, if less than a quarter of it is needed."""
        slots, length = 0, length_bucket(int(self._table["max_length"].max(initial=0)))
        if length:
            slots = bucket(len(self._slots))
        if 4 * slots * self._width * length < self.room:
            self._resize(slots, length)

    def add(self, requests: list[Request]) -> None:
        """Give each request a slot."""
        slots = self._take_slots(requests)
        old_slots, old_length = self._size
        length = max(request.max_length for request in requests)
        if len(self._slots) > old_slots or length > old_length:
            self._resize(max(bucket(len(self._slots)), old_slots), max(length_bucket(length), old_length))
        self._fill(slots, requests)
        if self._fixed_shapes:
            self._prefill(slots[self._table["length"][slots] > 0])
        else:
            self._num_new += len(requests)

    def remove(self, request: Request) -> None:
        """Free the slot of a request, if it has one."""
        self._vacate([slot.place for slot in self._slots if slot and slot.request is request])

    @property
    def slots(self) -> list[Slot | None]:
        """All slots, in the order of the next step's report."""
        return list(self._slots)

    def collect(self, slots: Sequence[Slot | None], report: StepReport) -> list[Request]:
        """Read the report, on the host, of a step over `slots`.

        Requests that are finished get their sequences and leave; streams get drafts. What has left or come since has no
        part in it.
        """
        done, lengths, scores, ids, token_scores = (part.numpy() for part in report)

        def sequence(request: Request, index: int, row: int) -> TokenSequence:
            start = len(request.prompt_ids)
            part = slice(start, start + lengths[index, row])
            own_ids, own_scores = ids[index, row, part].tolist(), token_scores[index, row, part].tolist()
            return TokenSequence(own_ids, own_scores, scores[index, row].item())

        if self._table["streams"].any():
            for index, slot in enumerate(slots):
                if slot and slot.place >= 0 and self._table["streams"][slot.place] and not done[index]:
                    slot.request.draft = sequence(slot.request, index, 0)
        finished, freed = [], []
        for index in done[: len(slots)].nonzero()[0].tolist():
            slot = slots[index]
            if slot and slot.place >= 0:
                request = slot.request
                sequences = [sequence(request, index, row) for row in range(self._width)]
                sequences.sort(key=lambda each: -each.score)
                request.sequences = sequences[: request.options.num_captions]
                finished.append(request)
                freed.append(slot.place)
        self._vacate(freed)
        return finished

    # a step over what grows

    def segments(self) -> list[Segment]:
        """What the next forward runs over: the newest token of each row that grows, and the prompts of new slots."""
        old = self._count - self._num_new
        return [
            *([self._growing_rows(old, self._next_length(0, old))] if old else []),
            *([self._prompts(old, self._next_length(old))] if self._num_new else []),
        ]

    def advance(self, logits: Sequence[Tensor]) -> StepReport:
        """Choose the next tokens by the logits, f32 [R, V], of each segment. The report's tensors are views."""
        count, old = self._count, self._count - self._num_new
        rows = torch.cat(list(logits)) if len(logits) > 1 else logits[0]
        if self._width > 1 and len(rows) < count * self._width:
            rows = rows[self._places(old, count)]
        if self._num_new and self._width > 1:  # all rows of a new slot begin with its prompt
            longest = self._next_length(old)
            for cache in (self._buffers.keys, self._buffers.values):
                cache[old:count, 1:, :, :, :longest] = cache[old:count, :1, :, :, :longest]
        self._num_new = 0
        length = self._next_length()
        self._count_token()
        return self._choose(rows.view(count, self._width, -1), length, self._features())

    def _growing(self, slots: int) -> Tensor | None:
        """Which rows of the first slots grow, bool [slots, W]; None: all."""
        growing = self._strategy.growing(self._buffers.state.first(slots, 0))
        return None if growing is None or self._width == 1 or bool(growing.all()) else growing

    def _growing_rows(self, slots: int, length: int) -> Segment:
        buffers, growing = self._buffers, self._growing(slots)
        history = buffers.history.first(slots, length)
        ids, past = history.newest().view(-1, 1), self._by_row(history.lengths - 1)
        adapters = self._by_row(buffers.adapters[:slots]) if self._table["adapted"][:slots].any() else None
        groups, rows = [(slots, self._width)], None
        if growing is not None:
            groups = [(len(list(equal)), rows) for rows, equal in groupby(growing.sum(1).tolist())]
            rows = growing.view(-1).nonzero()[:, 0]
            ids, past = ids[rows], past[rows]
            adapters = None if adapters is None else adapters[rows]
        keys, values = (cache.flatten(0, 1).transpose(0, 1) for cache in (buffers.keys, buffers.values))
        return Segment(
            ids,
            past,
            length,
            buffers.image_embeds[:slots],
            groups,
            keys,
            values,
            self._patches,
            rows,
            adapters=adapters,
            added_words=self._added_words,
        )

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
            patches=self._patches,
            counts=counts,
            adapters=buffers.adapters[new] if self._table["adapted"][new].any() else None,
            added_words=self._added_words,
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
        return bool((self._table["length"] < self._table["max_length"]).any())

    def fixed_step(self) -> StepReport:
        """Bring every row one token further. The report lies on the device.

        Requests that are finished may take part until they are collected: nobody reads what becomes of them.
        """
        length = min(length_bucket(self._next_length()), self._size[1])
        self._count_token()
        features = self._features()
        adapted = self._decoder.adapters.generation if self._table["adapted"].any() else 0  # 1 or more
        key = (bucket(len(self._slots)), length, features.constraints, features.filters, adapted)
        return self._graphs.run(key, lambda: self._fixed_step(*key))

    def _fixed_step(self, slots: int, length: int, constrained: bool, filtered: bool, adapted: int) -> StepReport:
        """From each row's newest token to the next one: this becomes a graph."""
        buffers, history = self._buffers, self._buffers.history.first(slots, length + 1)
        keys, values = (cache[:slots].flatten(0, 1).transpose(0, 1) for cache in (buffers.keys, buffers.values))
        segment = Segment(
            history.newest().view(-1, 1),
            self._by_row(history.lengths - 1),
            length,
            buffers.image_embeds[:slots],
            [(slots, self._width)],
            keys,
            values,
            self._patches,
            adapters=self._by_row(buffers.adapters[:slots]) if adapted else None,
            added_words=self._added_words,
        )
        (logits,) = self._decoder([segment])
        return self._choose(logits.view(slots, self._width, -1), length, Features.every(constrained, filtered))

    def _prefill(self, slots: npt.NDArray[np.int64]) -> None:
        """Feed prompts without their last tokens, a row for each, of any lengths; all rows of a slot begin with it.

        So that few shapes come up, there may be more rows, which are copies of the last one, and more tokens.
        """
        if not len(slots):
            return
        buffers, count = self._buffers, len(slots)
        longest = bucket(int(self._table["length"][slots].max()))
        longest = min(longest, self._size[1], self._decoder.config.max_positions)
        rows = bucket(count)
        index = to_device(np.pad(slots, (0, rows - count), mode="edge"), self._device)
        keys, values = self._decoder.new_cache(rows, longest)
        past = torch.zeros(rows, dtype=torch.int64, device=self._device)
        ids, image_embeds = buffers.history.ids[index, 0, :longest], buffers.image_embeds[index]
        adapters = buffers.adapters[index] if self._table["adapted"][slots].any() else None
        segment = Segment(
            ids,
            past,
            longest,
            image_embeds,
            [(rows, 1)],
            keys,
            values,
            self._patches,
            adapters=adapters,
            added_words=self._added_words,
        )
        self._decoder.hidden([segment])
        # behind a shorter prompt lies what is overwritten before anybody looks at it
        for mine, new in ((buffers.keys, keys), (buffers.values, values)):
            mine[index[:count], :, :, :, :longest] = new[:, :count].transpose(0, 1)[:, None]

    # both

    def _by_row(self, values: Tensor) -> Tensor:
        """What each slot has [S], for each of its rows [S W]."""
        return values[:, None].expand(-1, self._width).reshape(-1)

    def _features(self) -> Features:
        return Features(*self._table["features"].any(0).tolist())

    def _next_length(self, first: int = 0, stop: int | None = None) -> int:
        """Tokens in the longest cache of these slots after the next step."""
        return 1 + int(self._table["length"][first:stop].max())

    def _count_token(self) -> None:
        """Count the token that each slot in use gets in this step."""
        self._table["length"] += self._table["max_length"] > 0

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
    def _count(self) -> int:
        """Slots in use."""
        return int(np.count_nonzero(self._table["max_length"]))

    @property
    def _size(self) -> tuple[int, int]:
        """Slots that there are, and tokens that each of their rows has room for."""
        return self._buffers.keys.shape[0], self._buffers.keys.shape[4]

    def _resize(self, slots: int, length: int) -> None:
        """Move to buffers of another size, which ends the graphs."""
        old_slots, old_length = self._size
        self._graphs.clear()
        self._buffers = self._buffers.resized(slots, length)
        table = np.zeros(slots, SLOT)
        table[:old_slots] = self._table[:slots]
        self._table = table
        self._free(np.arange(old_slots, slots))
        self._buffers.history.ids[:, :, old_length + 1 :] = self._decoder.config.start_token_id  # as History pads it

    def _take_slots(self, requests: list[Request]) -> npt.NDArray[np.int64]:
        """The places of new requests, int64 [n]: those that are free, then more."""
        free = (self._table["max_length"][: len(self._slots)] == 0).nonzero()[0]
        more = max(0, len(requests) - len(free))
        places = np.append(free, np.arange(more) + len(self._slots))[: len(requests)]
        self._slots += [None] * more
        for place, request in zip(places.tolist(), requests, strict=True):
            self._slots[place] = Slot(request, place)
        return places

    def _fill(self, slots: npt.NDArray[np.int64], requests: list[Request]) -> None:
        """Write what a step reads of each request."""
        self._table[slots] = np.array([self._row(request) for request in requests], SLOT)
        buffers, positions = self._buffers, self._size[1] + 1
        index = to_device(slots, self._device)
        for cache in (buffers.keys, buffers.values):
            cache[index] = 0  # a NaN would get through the mask: 0 x NaN is NaN
        image_embeds = torch.stack([each.image_embeds for each in requests])
        buffers.image_embeds[index, : self._patches] = image_embeds.to(buffers.image_embeds)
        buffers.active[index] = 1
        buffers.adapters[index] = to_device(np.array([request.adapter_place for request in requests]), self._device)
        buffers.history.put(index, History.of(requests, self._width, positions))
        buffers.options.put(index, OptionColumns.of([request.options for request in requests]))
        buffers.state.put(index, self._strategy.new_state(requests, self._width, positions))

    def _row(self, request: Request) -> tuple[int, int, Features, bool, bool]:
        """Of the table."""
        drafts = request.streams and self._strategy.tokens_are_final and self._width == 1
        adapted = request.adapter is not None
        return len(request.prompt_ids) - 1, request.max_length, Features.of(request.options), drafts, adapted

    def _vacate(self, slots: list[int]) -> None:
        """Make slots free for other requests."""
        if slots:
            for place in slots:
                slot, self._slots[place] = self._slots[place], None
                if slot:
                    slot.place = -1
            self._free(np.array(slots))
            self._close_gaps()

    def _free(self, slots: npt.NDArray[np.int64]) -> None:
        """Write harmless numbers to slots that nobody reads, since a fixed step runs over them, too."""
        self._table[slots] = np.zeros(1, SLOT)
        index = to_device(slots, self._device)
        self._buffers.active[index] = 0
        self._buffers.adapters[index] = 0
        self._buffers.history.lengths[index] = 1
        self._buffers.history.prompt_lengths[index] = 1
        self._buffers.options.values[index] = 1  # nothing is divided by zero

    def _close_gaps(self) -> None:
        """Move the last requests into free slots, if that makes the next step smaller."""
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        count = self._count
        size = bucket if self._fixed_shapes else int
        if size(count) < size(len(self._slots)):
            in_use = self._table["max_length"] > 0
            targets, sources = (~in_use[:count]).nonzero()[0], in_use[count:].nonzero()[0] + count
            self._buffers.move(to_device(targets, self._device), to_device(sources, self._device))
            self._table[targets] = self._table[sources]
            for target, source in zip(targets.tolist(), sources.tolist(), strict=True):
                slot = self._slots[target] = self._slots[source]
                if slot:
                    slot.place = target
            self._free(sources)
            del self._slots[count:]
