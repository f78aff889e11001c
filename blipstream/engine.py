# SPDX-License-Identifier: Apache-2.0
"""The decoding engine: one forward over all rows, a strategy per request, rows that join and leave."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
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
from blipstream.strategies import Greedy, Sequence, Strategy
from blipstream.tokenizer import Tokenizer

WEIGHTS_NAME = "decoder.safetensors"
MAX_ROWS = 64  # rows in flight at once; requests beyond them wait
LENGTH_BUCKET = 32  # tokens; the cache's length is a multiple of it


@dataclass(frozen=True)
class Caption:
    """What comes out: text, summed log-probability and number of the generated tokens, the end token included."""

    text: str
    score: float
    num_tokens: int


@dataclass(eq=False)
class Request:
    """One image to be captioned: its embeddings [N, E], its prompt's ids, the strategy that it owns."""

    image_embeds: Tensor
    prompt_ids: list[int]
    max_length: int  # positions that its rows may come to fill
    strategy: Strategy
    captions: list[Caption] = field(default_factory=list)  # filled when it is finished


class RowCache:
    """What each row remembers: its image and the keys and values of its tokens so far.

    Rows 0 to `count` are in use, without a hole. Buffers are made in buckets and grow by doubling.
    """

    def __init__(self, config: TextConfig, num_patches: int, dtype: torch.dtype) -> None:
        self.count = 0
        head_size = config.hidden_size // config.num_heads
        self.image_embeds = torch.empty(0, num_patches, config.encoder_hidden_size, dtype=dtype)
        self.keys = torch.empty(config.num_layers, 0, config.num_heads, 0, head_size, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.lengths = torch.zeros(0, dtype=torch.int64)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens."""
        layers, old_rows, heads, old_length, head_size = self.keys.shape
        if rows <= old_rows and length <= old_length:
            return
        rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        length = old_length if length <= old_length else -(-length // LENGTH_BUCKET) * LENGTH_BUCKET
        shape = (layers, rows, heads, length, head_size)
        self.keys, self.values = _grown(self.keys, shape), _grown(self.values, shape)
        self.image_embeds = _grown(self.image_embeds, (rows, *self.image_embeds.shape[1:]))
        self.lengths = _grown(self.lengths, (rows,))

    def join(self, image_embeds: Tensor) -> None:
        """Append a row that looks at `image_embeds` [N, E] and has no tokens yet."""
        self.image_embeds[self.count] = image_embeds
        self.lengths[self.count] = 0
        self.count += 1

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        self.count -= 1
        if row == self.count:
            return
        length = int(self.lengths[self.count])
        self.keys[:, row, :, :length] = self.keys[:, self.count, :, :length]
        self.values[:, row, :, :length] = self.values[:, self.count, :, :length]
        self.image_embeds[row] = self.image_embeds[self.count]
        self.lengths[row] = length


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
        self._running: list[Request] = []  # the request of each row
        self._tokens: list[int] = []  # the newest token of each row, not yet fed

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
        return cls(decoder.to(torch_dtype), Tokenizer(folder, config.text), config, max_rows)

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
        # the last token generated is never fed back, so it needs no position
        max_length = len(prompt_ids) + options.max_tokens - 1
        if max_length > text.max_positions:
            raise InvalidInput(
                f"prompt and max_tokens together must fit {text.max_positions} positions, but the prompt takes "
                f"{len(prompt_ids)} and max_tokens is {options.max_tokens}: shorten one of them"
            )
        return Request(image_embeds, prompt_ids, max_length, Greedy(options, text.end_token_id))

    @torch.inference_mode()
    def logits(self, ids: Tensor, image_embeds: Tensor) -> Tensor:
        """f32 [R, V]: what follows ids [R, T], looking at image_embeds [R, N, E]. Outside of all requests."""
        cache = RowCache(self.config.text, self._num_patches, self._dtype)
        cache.reserve(len(ids), ids.shape[1])
        for image in image_embeds:
            cache.join(image)
        counts = torch.full((len(ids),), ids.shape[1])
        return self._forward(cache, ids, counts)

    def add(self, request: Request) -> None:
        """Queue a request; a later `step` takes it up."""
        self._waiting.append(request)

    def generate(self, requests: Iterable[Request]) -> None:
        """Run to completion: every request has its captions afterwards."""
        for request in requests:
            self.add(request)
        while self._waiting or self._running:
            self.step()

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Bring every row one token further, take up what waits, and return the requests that this finished."""
        finished = self._advance(self._decode_step(), 0) if self._running else []
        if joined := self._join():
            finished += self._advance(self._prefill(joined), len(self._running) - joined)
        return finished

    def _join(self) -> int:
        """Give rows to waiting requests while there are any of both; how many joined."""
        joining = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_rows - len(self._running)))]
        if joining:
            longest = max(request.max_length for request in joining)
            self._cache.reserve(self._cache.count + len(joining), longest)
        for request in joining:
            self._cache.join(request.image_embeds)
            self._running.append(request)
            self._tokens.append(0)  # the prefill's logits say which
        return len(joining)

    def _prefill(self, joined: int) -> Tensor:
        """Feed the prompts of the last `joined` rows, whatever their lengths; their logits, f32 [joined, V]."""
        prompts = [torch.tensor(request.prompt_ids) for request in self._running[-joined:]]
        counts = torch.tensor([len(prompt) for prompt in prompts])
        return self._forward(self._cache, nn.utils.rnn.pad_sequence(prompts, batch_first=True), counts)

    def _decode_step(self) -> Tensor:
        """Feed each row its newest token; logits, f32 [rows, V]."""
        ids = torch.tensor(self._tokens)[:, None]
        return self._forward(self._cache, ids, torch.ones(len(ids), dtype=torch.int64))

    def _forward(self, cache: RowCache, ids: Tensor, counts: Tensor) -> Tensor:
        """Run the decoder over the cache's last len(ids) rows."""
        rows = slice(cache.count - len(ids), cache.count)
        logits: Tensor = self._decoder(
            ids,
            cache.lengths[rows],
            counts,
            cache.image_embeds[rows],
            cache.keys[:, rows],
            cache.values[:, rows],
        )
        cache.lengths[rows] += counts
        return logits

    def _advance(self, logits: Tensor, first_row: int) -> list[Request]:
        """Let the strategies of the rows from `first_row` on read their logits; the requests that are finished."""
        finished = []
        for row in reversed(range(first_row, len(self._running))):  # backwards, since the last row fills a hole
            request = self._running[row]
            tokens = request.strategy.advance(logits[row - first_row, None])
            if tokens is not None:
                self._tokens[row] = tokens[0]
                continue
            request.captions = [self._caption(request, sequence) for sequence in request.strategy.sequences]
            finished.append(request)
            self._cache.leave(row)
            self._running[row], self._tokens[row] = self._running[-1], self._tokens[-1]
            self._running.pop()
            self._tokens.pop()
        return finished

    def _caption(self, request: Request, sequence: Sequence) -> Caption:
        text = self._tokenizer.decode(request.prompt_ids + sequence.ids)
        return Caption(text, sequence.score, len(sequence.ids))


def _grown(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A larger buffer with the same content in its corner."""
    larger = buffer.new_zeros(shape)  # zeros: what lies beyond a row's end is masked, yet must not be NaN
    larger[tuple(slice(size) for size in buffer.shape)] = buffer
    return larger
