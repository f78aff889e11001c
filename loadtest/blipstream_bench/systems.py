# SPDX-License-Identifier: Apache-2.0
"""The systems that the benchmark compares, with one interface: transformers, the engine alone, and Triton.

Each works in a process of its own. It captions JPEG bytes with `NEW_TOKENS` new tokens for an image, or does another of
the TASKS. All systems decode images on all cores.
"""

import json
import os
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval, PreTrainedModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.config import MATCHING_ARTIFACTS, readable_configs
from blipstream.decoding import load_engine
from blipstream.images.pixels import load_pixels
from blipstream.options import DecodingOptions, ExplainOptions
from blipstream.server.proc import processes_of_group
from blipstream.server.triton import TritonServer
from blipstream.vision import load_encoder
from blipstream.weights import TORCH_DTYPES
from blipstream_bench.clients import TIMEOUT, Answer, ClientProcesses, Item, answers, items, texts, until
from blipstream_bench.plans import (
    CLIENTS,
    COMPARED,
    EMBED_IMAGE,
    EMBED_TEXT,
    EXPLAIN,
    NEW_TOKENS,
    NUM_TEXTS,
    PAIRS,
    RUNTIMES,
    STRATEGIES,
)
from blipstream_client import Client

MIN_LATENCIES = 3  # images to time alone, however slow they are


class System(ABC):
    """What does the tasks, from a checkpoint or its artifacts, on one device and in one dtype."""

    name: str

    def __init__(self, checkpoint: Path, repository: Path, device: str, dtype: str, images: list[bytes]) -> None:
        self.checkpoint = checkpoint
        self.repository = repository  # artifacts in that dtype
        self.device = device
        self.dtype = dtype
        self.images = images  # asked about again and again

    @abstractmethod
    def load(self) -> None:
        """Make it ready to answer."""

    @abstractmethod
    def answer(self, asked: Iterable[Item], task: str, batch: int) -> Iterator[Answer]:
        """Yield the answer for each item; `batch` of them are in work at a time."""

    def compared(self, task: str) -> list[Answer]:
        """The answers for the first items, by which systems are compared."""
        asked = items(task, self.images)[:COMPARED]
        return list(self.answer(asked, task, len(asked)))

    def latency(self, task: str, seconds: float) -> list[float]:
        """Answer for one item at a time for about so many seconds; return the milliseconds that each took."""
        times: list[float] = []
        began = time.perf_counter()
        for item in cycle(items(task, self.images)):
            if len(times) >= MIN_LATENCIES and time.perf_counter() - began >= seconds:
                break
            start = time.perf_counter()
            list(self.answer([item], task, 1))
            times.append((time.perf_counter() - start) * 1000)
        return times

    def throughput(self, task: str, batch: int, seconds: float) -> float:
        """Answer for whole batches for about so many seconds, at least one; return answers a second."""
        began = time.perf_counter()
        count = self.answer_until(began + seconds, task, batch)
        return count / (time.perf_counter() - began)

    def answer_until(self, deadline: float, task: str, batch: int) -> int:
        """Answer for whole batches until time.perf_counter() reaches the deadline; return the number of answers."""
        return sum(1 for _ in self.answer(until(items(task, self.images), batch, deadline), task, batch))

    def peak_mb(self) -> float:
        """The most memory that the system has taken, in MB."""
        return _peak_mb(os.getpid())

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Stop whatever the system has started."""


class Transformers(System):
    """What a user writes with transformers: PIL, the processor, `generate` and the tokenizer."""

    name = "transformers"
    kind: type[PreTrainedModel] = BlipForConditionalGeneration

    def load(self) -> None:
        """Load the checkpoint."""
        transformers.utils.logging.disable_progress_bar()
        self._torch_dtype = TORCH_DTYPES[self.dtype]
        model = self.kind.from_pretrained(self.checkpoint, dtype=self._torch_dtype)
        self._model = model.eval().to(self.device)
        self._processor = BlipImageProcessorPil.from_pretrained(self.checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)

        scale = torch.tensor([self._processor.rescale_factor], dtype=torch.float64)
        mean, std = torch.tensor(self._processor.image_mean), torch.tensor(self._processor.image_std)
        self._scale = (scale / std).float().view(3, 1, 1).to(self.device)
        self._shift = (-mean / std).float().view(3, 1, 1).to(self.device)

    @torch.inference_mode()
    def answer(self, asked: Iterable[Item], task: str, batch: int) -> Iterator[Answer]:
        """Caption one batch after the other."""
        lengths = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
        for pixel_values in self._pixel_values(asked, batch):
            if task == EXPLAIN:
                ids = self._explain(pixel_values, lengths)
            else:
                ids = self._model.generate(pixel_values=pixel_values, num_beams=STRATEGIES[task], **lengths)
            yield from self._tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _explain(self, pixel_values: torch.Tensor, lengths: dict[str, Any]) -> torch.Tensor:
        """The captions' ids [B, T]. Their attention weights are computed, too.

        `generate` gives no attention weights, so a pass over the captions follows. Its own `generate` would encode the
        images a second time.
        """
        config, decoder = self._model.config.text_config, self._model.text_decoder
        embeds = self._model.vision_model(pixel_values).last_hidden_state
        start = torch.full((len(embeds), 1), config.bos_token_id, device=self.device)
        seen = {"encoder_hidden_states": embeds, "encoder_attention_mask": torch.ones_like(embeds[..., 0]).long()}
        ends = {"eos_token_id": config.sep_token_id, "pad_token_id": config.pad_token_id}
        ids: torch.Tensor = decoder.generate(start, **ends, **seen, **lengths)
        decoder(ids[:, :-1], **seen, output_attentions=True)
        return ids

    def _pixel_values(self, images: Iterable[Item], batch: int) -> Iterator[torch.Tensor]:
        """Normalized pixels [B, 3, H, W] of each batch of images."""
        for pixels in decoded(images, self._pixels, batch, self.device):
            # the processor would rescale and normalize on one core
            pixel_values = torch.from_numpy(pixels).to(self.device) * self._scale + self._shift
            yield pixel_values.to(self._torch_dtype)

    def _pixels(self, image: bytes) -> npt.NDArray[np.uint8]:
        """uint8 pixels [3, H, W]."""
        opened = Image.open(BytesIO(image)).convert("RGB")
        pixels: npt.NDArray[np.uint8] = self._processor(
            opened, do_rescale=False, do_normalize=False, return_tensors="np"
        )["pixel_values"][0]
        return pixels


class MatchingTransformers(Transformers):
    """A retrieval checkpoint in transformers, with each image encoded once for all of its texts."""

    kind = BlipForImageTextRetrieval

    @torch.inference_mode()
    def answer(self, asked: Iterable[Item], task: str, batch: int) -> Iterator[Answer]:
        """Embed, or match, one batch after the other."""
        if task == EMBED_TEXT:
            remaining = iter(asked)
            while together := list(islice(remaining, batch)):
                yield from self._embed_texts(self._tokenized(map(str, together))).float().numpy(force=True)
            return
        for pixel_values in self._pixel_values(asked, batch):
            embeds = self._model.vision_model(pixel_values).last_hidden_state
            images = normalize(self._model.vision_proj(embeds[:, 0]), dim=-1)
            if task == EMBED_IMAGE:
                yield from images.float().numpy(force=True)
            else:
                yield from self._match(embeds, images, NUM_TEXTS[task])

    def _match(self, embeds: torch.Tensor, images: torch.Tensor, count: int) -> list[list[float]]:
        """The logits of so many texts for each image; the similarities are computed, too, since `match` has them.

        embeds [B, N, E] and images [B, D].
        """
        logits: list[float] = []
        pairs = [(number, text) for number in range(len(embeds)) for text in texts(count)]
        for start in range(0, len(pairs), PAIRS[self.device]):
            numbers, those = zip(*pairs[start : start + PAIRS[self.device]], strict=True)
            tokens, rows = self._tokenized(those), list(numbers)
            (images[rows] * self._embed_texts(tokens)).sum(1).tolist()
            tokens["input_ids"][:, 0] = self._pair_token
            hidden = self._model.text_encoder(**tokens, encoder_hidden_states=embeds[rows]).last_hidden_state
            scores = self._model.itm_head(hidden[:, 0])
            logits += (scores[:, 1] - scores[:, 0]).tolist()
        return [logits[start : start + count] for start in range(0, len(logits), count)]

    def _embed_texts(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings [B, D]."""
        hidden = self._model.text_encoder(**tokens).last_hidden_state
        embeddings: torch.Tensor = normalize(self._model.text_proj(hidden[:, 0]), dim=-1)
        return embeddings

    def _tokenized(self, texts: Iterable[str]) -> dict[str, torch.Tensor]:
        """The arguments `input_ids` and `attention_mask`, each [B, T]."""
        tokens = self._tokenizer(list(texts), padding=True, return_tensors="pt")
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    @property
    def _pair_token(self) -> int:
        """The first token of a text that is read with an image, as the artifact has it."""
        (config,) = readable_configs(self.repository / "matcher/1", MATCHING_ARTIFACTS["matcher"])
        return config.match_config.pair_token_id


class BareEngine(System):
    """Blipstream without Triton: image loading, encoder and decoder in one process."""

    name = "engine"

    def load(self) -> None:
        """Load the artifacts."""
        runtime = RUNTIMES[self.device]
        self._encoder = load_encoder(runtime, self.repository / "encoder/1" / runtime, self.device)
        self._engine = load_engine(self.repository / "decoder/1/artifact", self.device)
        self._image_size = self._engine.config.vision.image_size

    def answer(self, asked: Iterable[Item], task: str, batch: int) -> Iterator[Answer]:
        """Caption one batch after the other."""
        options = DecodingOptions(num_beams=STRATEGIES.get(task, 1), min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS)
        explain = ExplainOptions() if task == EXPLAIN else None
        for pixels in decoded(asked, self._pixels, batch, self.device):
            embeds = torch.as_tensor(self._encoder.encode(pixels))
            requests = [self._engine.request(each, options, explain=explain) for each in embeds]
            self._engine.generate(requests)
            yield from (request.captions[0].text for request in requests)

    def _pixels(self, image: bytes) -> npt.NDArray[np.uint8]:
        """uint8 pixels [H, W, 3]."""
        return load_pixels(image, self._image_size)


class Triton(System):
    """Blipstream as it is served: Triton over gRPC, with one image in each request and many requests in flight."""

    name = "blipstream-triton"

    def load(self) -> None:
        """Start the server."""
        self._server = TritonServer(self.repository, config=self.device, http_port=0, grpc_port=0, metrics_port=0)
        self._server.start()
        try:
            self._server.wait_ready(self._server.ready_timeout)
        except BaseException:
            self._server.stop()
            raise
        self._client = Client(self._server.grpc_url, timeout=TIMEOUT)
        self._clients = ClientProcesses(self._server.grpc_url, self.images, CLIENTS[self.device])

    def answer(self, asked: Iterable[Item], task: str, batch: int) -> Iterator[Answer]:
        """Keep `batch` requests in flight."""
        return answers(self._client, asked, task, batch)

    def answer_until(self, deadline: float, task: str, batch: int) -> int:
        """The same by several clients, so that none of them is the bound."""
        return sum(self._clients.answer_until(deadline, task, batch))

    def peak_mb(self) -> float:
        """The sum over the server's processes. What they share is counted several times."""
        return sum(_peak_mb(pid) for pid in processes_of_group(self._server.pid))

    def version(self) -> str:
        """The version of tritonserver."""
        with urllib.request.urlopen(f"{self._server.http_url}/v2") as answer:  # noqa: S310 - our own server
            return str(json.load(answer)["version"])

    def close(self) -> None:
        """Stop the clients and the server."""
        self._clients.close()
        self._client.close()
        self._server.stop()


SYSTEMS: dict[str, tuple[type[System], ...]] = {  # by subject
    "captions": (Transformers, BareEngine, Triton),
    "heatmaps": (Transformers, BareEngine, Triton),
    "matching": (MatchingTransformers, Triton),
}


def decoded(
    images: Iterable[Item], decode: Callable[[bytes], npt.NDArray[np.uint8]], size: int, device: str
) -> Iterator[npt.NDArray[np.uint8]]:
    """Batches of images, decoded by all cores: for a GPU while the batch before is in work, else once that is done."""
    remaining = iter(images)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:

        def begin() -> Iterator[npt.NDArray[np.uint8]]:
            return threads.map(decode, [image for image in islice(remaining, size) if isinstance(image, bytes)])

        coming = begin()
        while batch := list(coming):
            if device != "cpu":
                coming = begin()
            yield np.stack(batch)
            if device == "cpu":
                coming = begin()


def _peak_mb(pid: int) -> float:
    """The most resident memory that a process had. getrusage's would count what ran before exec, too."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
