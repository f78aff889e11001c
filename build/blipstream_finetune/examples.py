# SPDX-License-Identifier: Apache-2.0
"""Batches of training, in an order that only the seed decides: whoever goes on at a step gets what would have come."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from blipstream.images.pixels import load_pixels
from blipstream_finetune.data import Data, Place
from blipstream_finetune.embeddings import EmbeddingCache

IGNORED = -100  # as a label: transformers leaves it out of the loss


class Pair(NamedTuple):
    """An image and one of its captions."""

    digest: str
    ids: Sequence[int]  # from [DEC] to [SEP], with the prompt


class Batch(NamedTuple):
    """B pairs. `images` are image_embeds [B, N, E], f16, or pixel_values [B, 3, H, W], f32."""

    images: Tensor
    ids: Tensor  # int64 [B, L]
    mask: Tensor  # int64 [B, L]; 0 is padding
    labels: Tensor  # int64 [B, L]; IGNORED for padding and prompt


class Texts:
    """Captions as the engine has them: [DEC], the prompt, the caption, [SEP]."""

    def __init__(self, tokenizer: Any, prompt: str, start: int, end: int, pad: int) -> None:  # noqa: ANN401
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self.prompt_ids = [start, *self._encode(prompt)]
        self.end, self.pad = end, pad

    def ids(self, caption: str) -> list[int]:
        """The ids of a caption."""
        return [*self.prompt_ids, *self._encode(caption), self.end]

    def pairs(self, data: Data) -> list[Pair]:
        """All pairs of the data."""
        return [Pair(digest, self.ids(caption)) for digest, caption in data.pairs]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def batch(self, pairs: Sequence[Pair], images: Tensor) -> Batch:
        """Put pairs together."""
        longest = max(len(pair.ids) for pair in pairs)
        ids = torch.full((len(pairs), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, pair in enumerate(pairs):
            ids[row, : len(pair.ids)] = torch.tensor(pair.ids)
            mask[row, : len(pair.ids)] = 1
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, : len(self.prompt_ids)] = IGNORED
        return Batch(images, ids, mask, labels)


class PixelReader:
    """The pixel_values of images, as transformers' processor makes them."""

    def __init__(self, places: dict[str, Place], image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._places, self._image_size = places, image_size
        self._mean, self._std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (mean, std))

    def get(self, digests: Sequence[str]) -> Tensor:
        """F32 [B, 3, H, W]."""
        pixels = np.stack([load_pixels(self._places[each].read(), self._image_size) for each in digests])
        scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
        return torch.from_numpy((scaled - self._mean) / self._std)


class Batches:
    """The batch of each step. Epochs follow one another without a gap, so all are full."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        images: PixelReader | EmbeddingCache,
        texts: Texts,
        size: int,
        steps: int,
        seed: int,
    ) -> None:
        self._pairs, self._images, self._texts = pairs, images, texts
        self._size, self._steps, self._seed = size, steps, seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        pairs = []
        for place in range(step * self._size, (step + 1) * self._size):
            epoch, within = divmod(place, len(self._pairs))
            pairs.append(self._pairs[_order(len(self._pairs), self._seed, epoch)[within]])
        return self._texts.batch(pairs, torch.as_tensor(self._images.get([pair.digest for pair in pairs])))

    def following(self, step: int, workers: int) -> Iterator[Batch]:
        """The batches from a step on, which so many threads make in advance."""
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[Future[Batch]] = deque()
            for each in range(step, self._steps):
                waiting.append(pool.submit(self.__getitem__, each))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


@lru_cache(maxsize=2)
def _order(number: int, seed: int, epoch: int) -> list[int]:
    """The numbers below `number` in an epoch's order."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


def in_order(pairs: Sequence[Pair], images: PixelReader | EmbeddingCache, texts: Texts, size: int) -> Iterator[Batch]:
    """All pairs once, for validation."""
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        yield texts.batch(some, torch.as_tensor(images.get([pair.digest for pair in some])))
