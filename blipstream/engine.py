# SPDX-License-Identifier: Apache-2.0
"""The decoding engine: one forward over all rows, a strategy per request, rows that join and leave."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from blipstream.config import BUILD_HINT, CheckpointConfig, DType, TextConfig
from blipstream.decoder import TextDecoder
from blipstream.dtypes import resolve
from blipstream.errors import ArtifactError, InvalidInput
from blipstream.options import DecodingOptions
from blipstream.strategies import Sequence, Step, Strategy, strategy_for
from blipstream.tokenizer import Tokenizer

WEIGHTS_NAME = "decoder.safetensors"
MAX_ROWS = 64  # rows in flight at once; requests beyond them wait
LENGTH_BUCKET = 32  # tokens; the cache's length is a multiple of it


@dataclass(frozen=True)
class Caption:
    """What comes out of a request, once for each caption that it asked for."""

    text: str
    score: float  # what captions are ranked by: the summed log-probability, length-normalised by beam search
    num_tokens: int  # generated, the end token included
    token_scores: list[float]  # the log-probability of each of them


@dataclass(eq=False)
class Request:
    """One image to be captioned: its embeddings [N, E], its prompt's ids, the strategy that it owns."""

    image_embeds: Tensor
    options: DecodingOptions
    prompt_ids: list[int]
    strategy: Strategy
    tokens: list[int] = field(default_factory=list)  # the newest of each of its rows, not yet fed
    captions: list[Caption] = field(default_factory=list)  # filled when it is finished

    @property
    def max_length(self) -> int:
        """Positions that its rows may come to fill; the last token generated is never fed back."""
        return len(self.prompt_ids) + self.options.max_tokens - 1


class RowCache:
    """What rows remember: keys and values of their tokens, and for each request, the image it looks at.

    Rows in use are the first, without a hole; so are images. Buffers are made in buckets and grow by doubling.
    """

    def __init__(self, config: TextConfig, num_patches: int, dtype: torch.dtype) -> None:
        head_size = config.hidden_size // config.num_heads
        self.image_embeds = torch.empty(0, num_patches, config.encoder_hidden_size, dtype=dtype)
        self.keys = torch.empty(config.num_layers, 0, config.num_heads, 0, head_size, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.lengths = torch.zeros(0, dtype=torch.int64)  # tokens of each row

    def reserve(self, images: int, rows: int, length: int) -> None:
        """Make room for so many images, and rows of `length` tokens."""
        old_images, *image_shape = self.image_embeds.shape
        if images > old_images:
            self.image_embeds = _grown(self.image_embeds, (max(images, 2 * old_images), *image_shape))
        layers, old_rows, heads, old_length, head_size = self.keys.shape
        if rows <= old_rows and length <= old_length:
            return
        rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        length = old_length if length <= old_length else -(-length // LENGTH_BUCKET) * LENGTH_BUCKET
        shape = (layers, rows, heads, length, head_size)
        self.keys, self.values = _grown(self.keys, shape), _grown(self.values, shape)
        self.lengths = _grown(self.lengths, (rows,))

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


class Engine:
    """Captions from image embeddings. Not thread-safe: one thread drives it."""

    def __init__(
        self, decoder: TextDecoder, tokenizer: Tokenizer, config: CheckpointConfig, max_rows: int = MAX_ROWS
    ) -> None:
        self.config = config
        self.max_rows = max_rows
        self._decoder = decoder.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._dtype = decoder.head_bias.dtype
        self._num_patches = 1 + (config.vision.image_size // config.vision.patch_size) ** 2
        self._cache = RowCache(config.text, self._num_patches, self._dtype)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # in the order of the cache's images and rows

    @classmethod
    def load(cls, folder: Path, max_rows: int = MAX_ROWS, dtype: DType | None = None) -> "Engine":
        """From an artifact, in its own dtype unless told otherwise. Raises ArtifactError where it is broken."""
        config = CheckpointConfig.load(folder)
        with torch.device("meta"):
            decoder = TextDecoder(config.text)
        try:
            decoder.load_state_dict(load_file(folder / WEIGHTS_NAME), assign=True)
        except (OSError, RuntimeError, SafetensorError) as exc:
            raise ArtifactError(f"{folder / WEIGHTS_NAME} cannot be loaded: {BUILD_HINT}") from exc
        torch_dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[resolve(dtype or config.dtype)]
        return cls(decoder.to(torch_dtype).pack(), Tokenizer(folder, config.text), config, max_rows)

    def request(self, image_embeds: Tensor, options: DecodingOptions) -> Request:
        """A request for one image, image_embeds [N, E] of any float dtype. Raises InvalidInput if it cannot be met."""
        text = self.config.text
        expected = (self._num_patches, text.encoder_hidden_size)
        if tuple(image_embeds.shape) != expected:
            raise InvalidInput(
                f"image_embeds must have shape {list(expected)}, not {list(image_embeds.shape)}: "
                "do they come from another checkpoint's encoder?"
            )
        prompt_ids = self._tokenizer.encode(options.prompt)
        request = Request(image_embeds, options, prompt_ids, strategy_for(options, prompt_ids, text.end_token_id))
        if request.max_length > text.max_positions:
            raise InvalidInput(
                f"prompt and max_tokens together must fit {text.max_positions} positions, but the prompt takes "
                f"{len(prompt_ids)} and max_tokens is {options.max_tokens}: shorten one of them"
            )
        return request

    @torch.inference_mode()
    def logits(self, ids: Tensor, image_embeds: Tensor) -> Tensor:
        """f32 [R, V]: what follows ids [R, T], looking at image_embeds [R, N, E]. Outside of all requests."""
        cache = RowCache(self.config.text, self._num_patches, self._dtype)
        cache.reserve(len(ids), len(ids), ids.shape[1])
        cache.image_embeds[: len(ids)] = image_embeds
        return self._forward(cache, ids, torch.full((len(ids),), ids.shape[1]), [1] * len(ids))

    def add(self, request: Request) -> None:
        """Queue a request; a later `step` takes it up."""
        self._waiting.append(request)

    def generate(self, requests: Iterable[Request]) -> None:
        """Run to completion: every request has its captions afterwards."""
        self._waiting.extend(requests)
        try:
            while self._waiting or self._running:
                self.step()
        except BaseException:
            self._waiting.clear()  # what failed must not fail those who come next
            self._running.clear()
            raise

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Bring every row one token further, take up what waits, and return the requests that this finished."""
        finished = self._advance(0, self._decode_step()) if self._running else []
        joined = self._join()
        if joined:
            finished += self._advance(len(self._running) - len(joined), self._prefill(joined))
        return finished

    def _join(self) -> list[Request]:
        """Take up waiting requests, in their order, while there are rows for them."""
        joined: list[Request] = []
        rows = sum(request.strategy.max_rows for request in self._running)
        while self._waiting and (not rows or rows + self._waiting[0].strategy.max_rows <= self.max_rows):
            joined.append(self._waiting.popleft())
            rows += joined[-1].strategy.max_rows
        if joined:
            first = len(self._running)
            self._running += joined
            self._cache.reserve(len(self._running), rows, max(request.max_length for request in joined))
            for image, request in enumerate(joined, first):
                self._cache.image_embeds[image] = request.image_embeds
        return joined

    def _prefill(self, joined: list[Request]) -> Tensor:
        """Feed the prompts of the last requests, a row each, whatever their lengths; logits, f32 [joined, V]."""
        prompts = [torch.tensor(request.prompt_ids) for request in joined]
        counts = torch.tensor([len(prompt) for prompt in prompts])
        first_row = sum(len(request.tokens) for request in self._running)
        self._cache.lengths[first_row : first_row + len(joined)] = 0
        for request in joined:
            request.tokens = request.prompt_ids[-1:]
        ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        return self._forward(self._cache, ids, counts, [1] * len(joined), len(self._running) - len(joined), first_row)

    def _decode_step(self) -> Tensor:
        """Feed each row its newest token; logits, f32 [rows, V]."""
        ids = torch.tensor([[token] for request in self._running for token in request.tokens])
        rows_per_image = [len(request.tokens) for request in self._running]
        return self._forward(self._cache, ids, torch.ones(len(ids), dtype=torch.int64), rows_per_image)

    def _forward(
        self, cache: RowCache, ids: Tensor, counts: Tensor, rows_per_image: list[int], image: int = 0, row: int = 0
    ) -> Tensor:
        """Run the decoder over the cache's rows from `row` on, which look at its images from `image` on."""
        rows, images = slice(row, row + len(ids)), slice(image, image + len(rows_per_image))
        groups = [(len(list(equal)), size) for size, equal in groupby(rows_per_image)]
        keys, values = cache.keys[:, rows], cache.values[:, rows]
        logits: Tensor = self._decoder(
            ids, cache.lengths[rows], counts, cache.image_embeds[images], groups, keys, values
        )
        cache.lengths[rows] += counts
        return logits

    def _advance(self, first: int, logits: Tensor) -> list[Request]:
        """Let the requests from `first` on read their rows' logits; those that are finished leave."""
        starts = [0, *accumulate(len(request.tokens) for request in self._running)]
        steps = [Step(request.tokens, list(range(len(request.tokens)))) for request in self._running[:first]]
        for request, start, stop in zip(self._running[first:], starts[first:], starts[first + 1 :], strict=False):
            steps.append(request.strategy.advance(logits[start - starts[first] : stop - starts[first]]))
        order = _without_holes([bool(step.tokens) for step in steps])
        self._cache.rearrange(order, [starts[index] + parent for index in order for parent in steps[index].parents])
        for request, step in zip(self._running, steps, strict=True):
            request.tokens = step.tokens
        finished = [request for request in self._running if not request.tokens]
        for request in finished:
            request.captions = [self._caption(request, sequence) for sequence in request.strategy.sequences]
        self._running = [self._running[index] for index in order]
        return finished

    def _caption(self, request: Request, sequence: Sequence) -> Caption:
        ids = request.prompt_ids + sequence.ids if request.options.include_prompt else sequence.ids
        return Caption(self._tokenizer.decode(ids), sequence.sequence_score, len(sequence.ids), sequence.token_scores)


def _without_holes(kept: list[bool]) -> list[int]:
    """The indices that are kept, each in its place if it can, the last ones in the places that fall free."""
    order = [index for index, keep in enumerate(kept) if keep]
    last = order[::-1]
    return [index if kept[index] else last[kept[:index].count(False)] for index in range(len(order))]


def _grown(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A larger buffer with the same content in its corner."""
    larger = buffer.new_zeros(shape)  # zeros: what lies beyond a row's end is masked, yet must not be NaN
    larger[tuple(slice(size) for size in buffer.shape)] = buffer
    return larger
