# SPDX-License-Identifier: Apache-2.0
"""The engine for a CPU: one forward over all rows, a strategy per request, rows that join and leave.

Shapes follow the work: what is finished costs nothing.
"""

from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn

from blipstream.config import CheckpointConfig
from blipstream.decoding.buffers import length_bucket, resized
from blipstream.decoding.engine import Engine, Request
from blipstream.decoding.strategies import Step, Strategy, strategy_for
from blipstream.text.decoder import TextDecoder
from blipstream.text.tokenizer import Tokenizer

MAX_ROWS = 64


@dataclass(eq=False)
class Run:
    """A request that was taken up."""

    request: Request
    strategy: Strategy
    tokens: list[int] = field(default_factory=list)  # the newest of each of its rows, not yet fed

    def unchanged(self) -> Step:
        """The step that leaves it as it is."""
        return Step(self.tokens, list(range(len(self.tokens))))


class RowCache:
    """What rows remember: keys and values of their tokens, and for each request, the image it looks at.

    Rows in use are the first, without a hole; so are images. Buffers are made in buckets and grow by doubling.
    """

    def __init__(self, decoder: TextDecoder, num_patches: int) -> None:
        self.keys, self.values = decoder.new_cache(0, 0)
        self.image_embeds = self.keys.new_zeros(0, num_patches, decoder.config.encoder_hidden_size)
        self.lengths = torch.zeros(0, dtype=torch.int64)  # tokens of each row

    def reserve(self, images: int, rows: int, length: int) -> None:
        """Make room for so many images, and rows of `length` tokens."""
        old_images, *image_shape = self.image_embeds.shape
        if images > old_images:
            self.image_embeds = resized(self.image_embeds, (max(images, 2 * old_images), *image_shape))
        layers, old_rows, heads, old_length, head_size = self.keys.shape
        if rows <= old_rows and length <= old_length:
            return
        rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        length = max(length_bucket(length), old_length)
        shape = (layers, rows, heads, length, head_size)
        self.keys, self.values = resized(self.keys, shape), resized(self.values, shape)
        self.lengths = resized(self.lengths, (rows,))

    def rearrange(self, images: list[int], rows: list[int]) -> None:
        """Make image i what images[i] was, and row i what rows[i] was. What stays is not touched."""
        for image, source in enumerate(images):
            if image != source:
                self.image_embeds[image] = self.image_embeds[source]  # a later one, and nobody else's source
        moves = [(row, source) for row, source in enumerate(rows) if row != source]
        if not moves:
            return
        targets, sources = torch.tensor(moves).T
        length = int(self.lengths[sources].max())
        for buffer in (self.keys, self.values):
            buffer[:, targets, :, :length] = buffer[:, sources, :, :length]
        self.lengths[targets] = self.lengths[sources]


class RowEngine(Engine):
    """See Engine."""

    max_rows = MAX_ROWS

    def __init__(self, decoder: TextDecoder, tokenizer: Tokenizer, config: CheckpointConfig, dtype: str) -> None:
        super().__init__(decoder, tokenizer, config, dtype)
        self._cache = RowCache(decoder, self._num_patches)
        self._running: list[Run] = []  # in the order of the cache's images and rows

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """See Engine."""
        finished = self._advance(0, self._decode_step()) if self._running else []
        joined = self._join()
        if joined:
            finished += self._advance(len(self._running) - len(joined), self._prefill(joined))
        return finished

    @property
    def rows(self) -> int:
        """See Engine."""
        return sum(len(run.tokens) for run in self._running)

    def reset(self) -> None:
        """See Engine."""
        super().reset()
        self._running.clear()

    @torch.inference_mode()
    def _drop(self, request: Request) -> None:
        self._settle([Step() if run.request is request else run.unchanged() for run in self._running])

    def _join(self) -> list[Run]:
        """Give those that are taken up a strategy and a place in the cache."""
        joined: list[Run] = []
        reserved = sum(run.request.options.max_rows for run in self._running)
        for request in self._admit(reserved):
            strategy = strategy_for(request.options, request.prompt_ids, self.config.text.end_token_id)
            request.draft = strategy.draft
            joined.append(Run(request, strategy))
        if joined:
            first = len(self._running)
            self._running += joined
            rows = sum(run.request.options.max_rows for run in self._running)
            self._cache.reserve(len(self._running), rows, max(run.request.max_length for run in joined))
            for image, run in enumerate(joined, first):
                self._cache.image_embeds[image] = run.request.image_embeds
        return joined

    def _prefill(self, joined: list[Run]) -> Tensor:
        """Feed the prompts of the last runs, a row each, whatever their lengths; logits, f32 [joined, V]."""
        prompts = [torch.tensor(run.request.prompt_ids) for run in joined]
        counts = torch.tensor([len(prompt) for prompt in prompts])
        first_row = sum(len(run.tokens) for run in self._running)
        self._cache.lengths[first_row : first_row + len(joined)] = 0
        for run in joined:
            run.tokens = run.request.prompt_ids[-1:]
        ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        return self._forward(ids, counts, [1] * len(joined), len(self._running) - len(joined), first_row)

    def _decode_step(self) -> Tensor:
        """Feed each row its newest token; logits, f32 [rows, V]."""
        ids = torch.tensor([[token] for run in self._running for token in run.tokens])
        rows_per_image = [len(run.tokens) for run in self._running]
        return self._forward(ids, torch.ones(len(ids), dtype=torch.int64), rows_per_image)

    def _forward(self, ids: Tensor, counts: Tensor, rows_per_image: list[int], image: int = 0, row: int = 0) -> Tensor:
        """Run the decoder over the cache's rows from `row` on, which look at its images from `image` on."""
        cache = self._cache
        rows, images = slice(row, row + len(ids)), slice(image, image + len(rows_per_image))
        groups = [(len(list(equal)), size) for size, equal in groupby(rows_per_image)]
        keys, values = cache.keys[:, rows], cache.values[:, rows]
        logits: Tensor = self._decoder(
            ids, cache.lengths[rows], counts, cache.image_embeds[images], groups, keys, values
        )
        cache.lengths[rows] += counts
        return logits

    def _advance(self, first: int, logits: Tensor) -> list[Request]:
        """Let the runs from `first` on read their rows' logits; those that are finished leave."""
        advancing = self._running[first:]
        rows = torch.split(logits, [len(run.tokens) for run in advancing])
        steps = [run.unchanged() for run in self._running[:first]]
        steps += [run.strategy.advance(logits) for run, logits in zip(advancing, rows, strict=True)]
        finished = self._settle(steps)
        for run in finished:
            self._finish(run.request, run.strategy.sequences)
        return [run.request for run in finished]

    def _settle(self, steps: list[Step]) -> list[Run]:
        """Let each run go on with the rows that its step says; those without any leave, and come back."""
        starts = [0, *accumulate(len(run.tokens) for run in self._running)]
        order = _without_holes([bool(step.tokens) for step in steps])
        self._cache.rearrange(order, [starts[index] + parent for index in order for parent in steps[index].parents])
        for run, step in zip(self._running, steps, strict=True):
            run.tokens = step.tokens
        left = [run for run in self._running if not run.tokens]
        self._running = [self._running[index] for index in order]
        return left


def _without_holes(kept: list[bool]) -> list[int]:
    """The indices that are kept, each in its place if it can, the last ones in the places that fall free."""
    order = [index for index, keep in enumerate(kept) if keep]
    last = order[::-1]
    return [index if kept[index] else last[kept[:index].count(False)] for index in range(len(order))]
