# SPDX-License-Identifier: Apache-2.0
"""What every engine shares: requests, captions, and running to completion."""

import time
from abc import ABC, abstractmethod
from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from blipstream.config import CheckpointConfig, DType
from blipstream.decoding.strategies import Draft, Sequence
from blipstream.dtypes import resolve
from blipstream.errors import InvalidInput
from blipstream.options import DecodingOptions
from blipstream.text.decoder import TextDecoder
from blipstream.text.tokenizer import Tokenizer
from blipstream.weights import TORCH_DTYPES, load_weights

WEIGHTS_NAME = "decoder.safetensors"
YIELDING = 2  # rows that others may have first, for each of those that a sender asked for at once


@dataclass(frozen=True)
class Caption:
    """What comes out of a request, once for each caption that it asked for."""

    text: str
    score: float  # what captions are ranked by: the summed log-probability, length-normalised by beam search
    num_tokens: int  # generated, the end token included
    token_scores: list[float]  # the log-probability of each of them


@dataclass(eq=False)
class Request:
    """One image to be captioned: its embeddings [N, E] and its prompt's ids."""

    image_embeds: Tensor
    options: DecodingOptions
    prompt_ids: list[int]
    draft: Draft | None = None  # the caption so far, unless several are under way
    sequences: list[Sequence] = field(default_factory=list)  # best first, once it is finished
    captions: list[Caption] = field(default_factory=list)  # the same in words
    arrived: int = field(default_factory=time.time_ns)  # nanoseconds since 1970
    admitted: int = 0  # when it was taken up; 0: not yet
    before: int = 0  # rows that its sender asked for at once and that come before it
    turn: int = 0  # rows that may have been taken up, ever, before those that come later let it pass
    id: str = ""  # who sent it calls it so
    trace_context: str = ""  # JSON of W3C's headers, if it is traced

    @property
    def max_length(self) -> int:
        """Positions that its rows may come to fill."""
        return self.options.max_length(len(self.prompt_ids))


class Engine(ABC):
    """Captions from image embeddings. Not thread-safe: one thread drives it."""

    max_rows: int  # in flight at once; requests beyond them wait
    warm_up_counts: tuple[int, ...] = (1,)

    def __init__(self, decoder: TextDecoder, tokenizer: Tokenizer, config: CheckpointConfig, dtype: str) -> None:
        self.config = config
        self.dtype = dtype  # what it computes in: bf16, f16 or f32
        self._decoder = decoder.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._num_patches = 1 + (config.vision.image_size // config.vision.patch_size) ** 2
        self.image_embeds_shape = (self._num_patches, config.text.encoder_hidden_size)
        self._waiting: deque[Request] = deque()  # in the order of their turns
        self._taken_up = 0  # rows, ever

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", dtype: DType | None = None, max_rows: int | None = None) -> Self:
        """From an artifact, in its own dtype unless told otherwise. Raises ArtifactError where it is broken."""
        config = CheckpointConfig.load(folder)
        with torch.device("meta"):
            decoder = TextDecoder(config.text)
        load_weights(decoder, folder / WEIGHTS_NAME)
        name = resolve(dtype or config.dtype, torch.device(device).type)
        decoder = decoder.to(device, TORCH_DTYPES[name]).pack()
        engine = cls(decoder, Tokenizer(folder, config.text), config, name)
        if max_rows:
            engine.max_rows = max_rows
        return engine

    def options(self, tensors: Mapping[str, Any], images: int) -> list[DecodingOptions]:
        """`DecodingOptions.from_rows`, as far as this model can tell before there is more than that."""
        return DecodingOptions.from_rows(tensors, images, self.config.text.max_positions)

    def request(self, image_embeds: Tensor, options: DecodingOptions) -> Request:
        """A request for one image, image_embeds [N, E] of any float dtype on any device, of which it keeps a copy.

        Raises InvalidInput if it cannot be met.
        """
        text = self.config.text
        if tuple(image_embeds.shape) != self.image_embeds_shape:
            raise InvalidInput(
                f"image_embeds must have shape {list(self.image_embeds_shape)}, not {list(image_embeds.shape)}: "
                "do they come from another checkpoint's encoder?"
            )
        # on a GPU this would wait for the step under way; there, as here, what is no number harms its own request alone
        if image_embeds.device.type == "cpu" and not _is_finite(image_embeds):
            raise InvalidInput("image_embeds must be finite numbers, and some are not: encode the image again")
        request = Request(self._copy(image_embeds), options, self._tokenizer.encode(options.prompt))
        if max(request.prompt_ids) >= text.vocab_size:  # on a GPU it would end the process
            raise InvalidInput(
                f"prompt must be of the model's {text.vocab_size:,} tokens, and its tokenizer makes others of it: "
                "leave words out, or build the model anew with its own tokenizer"
            )
        options.check_fits(text.max_positions, len(request.prompt_ids))
        return request

    def requests(self, image_embeds: Tensor, options: Iterable[DecodingOptions]) -> list[Request]:
        """One for each image of a sender, image_embeds [B, N, E]. Raises InvalidInput if any of them cannot be met."""
        requests, before = [], 0
        for embeds, its in zip(image_embeds, options, strict=True):
            requests.append(self.request(embeds, its))
            requests[-1].before = before
            before += its.max_rows
        return requests

    @torch.inference_mode()
    def logits(self, ids: Tensor, image_embeds: Tensor) -> Tensor:
        """f32 [R, V]: what follows ids [R, T], looking at image_embeds [R, N, E]. Outside of all requests."""
        rows, length = ids.shape
        weights = self._decoder.head_bias
        keys, values = self._decoder.new_cache(rows, length)
        past = torch.zeros(rows, dtype=torch.int64, device=weights.device)
        logits: Tensor = self._decoder(
            ids.to(weights.device), past, past + length, image_embeds.to(weights), [(rows, 1)], keys, values
        )
        return logits

    def add(self, request: Request) -> None:
        """Queue a request; a later `step` takes it up.

        First come, first served, but who asks for much at once lets others pass, up to YIELDING times as much. So
        nobody waits for all of it, nor does it wait for ever (start-time fair queueing, Goyal et al. 1996).
        """
        request.turn = self._taken_up + YIELDING * request.before
        insort(self._waiting, request, key=lambda each: each.turn)

    def cancel(self, request: Request) -> None:
        """Forget a request, waiting or taken up: its rows are free for the next step."""
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._drop(request)

    @property
    def num_waiting(self) -> int:
        """Requests that were not taken up yet."""
        return len(self._waiting)

    def generate(self, requests: Iterable[Request]) -> None:
        """Run to completion: every request has its captions afterwards."""
        for request in requests:
            self.add(request)
        try:
            while self._waiting or self.rows:
                self.step()
        except BaseException:
            self.reset()  # what failed must not fail those who come next
            raise

    def warm_up(self) -> None:
        """Do what would make the first requests wait: greedy captions in each number that comes up."""
        image_embeds = torch.zeros(self.image_embeds_shape)
        options = DecodingOptions(max_tokens=2)
        for count in self.warm_up_counts:
            self.generate(self.request(image_embeds, options) for _ in range(count))

    def text(self, request: Request, ids: list[int]) -> str:
        """The caption of generated `ids`, with the prompt if the request wants it."""
        return self._tokenizer.decode(request.prompt_ids + ids if request.options.include_prompt else ids)

    @property
    @abstractmethod
    def rows(self) -> int:
        """Captions under way, each beam counted; 0 if no request is."""

    @abstractmethod
    def step(self) -> list[Request]:
        """Bring every row one token further, take up what waits, and return the requests that this finished."""

    def reset(self) -> None:
        """Forget all requests."""
        self._waiting.clear()

    def _copy(self, image_embeds: Tensor) -> Tensor:
        """A request's own, on the engine's device."""
        if image_embeds.device.type != "cpu" or image_embeds.dtype == torch.bfloat16:
            return image_embeds.to("cpu", copy=True)
        return torch.from_numpy(image_embeds.numpy().copy())

    def _admit(self, rows: int) -> list[Request]:
        """Take up waiting requests, in their turn, beside those that may come to have `rows`."""
        admitted: list[Request] = []
        while self._waiting and (not rows or rows + self._waiting[0].options.max_rows <= self.max_rows):
            admitted.append(self._waiting.popleft())
            admitted[-1].admitted = time.time_ns()
            rows += admitted[-1].options.max_rows
            self._taken_up += admitted[-1].options.max_rows
        return admitted

    @abstractmethod
    def _drop(self, request: Request) -> None:
        """Forget a request that was taken up, if it is unfinished."""

    def _finish(self, request: Request, sequences: list[Sequence]) -> None:
        """Put a request's results where its sender looks for them."""
        request.sequences = sequences
        request.captions = [
            Caption(self.text(request, each.ids), each.sequence_score, len(each.ids), each.token_scores)
            for each in sequences
        ]


# Requests are made in another thread than the engine's. What torch computes there calls upon OpenMP, to the detriment
# of the engine's thread (see load_engine), so f16, in which all requests come over the network, is numpy's.


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype == torch.float16:  # by the exponent: numpy's isfinite takes twenty times as long
        return bool((tensor.numpy().view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool(tensor.isfinite().all())
