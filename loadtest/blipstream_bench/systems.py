# SPDX-License-Identifier: Apache-2.0
"""The systems that the benchmark compares, with one interface: transformers, the engine alone, and Triton.

Each captions JPEG bytes with `NEW_TOKENS` new tokens for an image, in a process of its own.
"""

import json
import os
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blipstream.decoding import load_engine
from blipstream.images.pixels import load_pixels
from blipstream.options import DecodingOptions
from blipstream.server.proc import processes_of_group
from blipstream.server.triton import TritonServer
from blipstream.vision import load_encoder
from blipstream.weights import TORCH_DTYPES
from blipstream_bench.plans import NEW_TOKENS
from blipstream_client import BlipstreamError, Client

RUNTIMES = {"cpu": "openvino", "cuda": "torch"}  # of the encoder, by device
TIMEOUT = 600.0  # seconds for a request
MIN_LATENCIES = 3  # images to time alone, however slow they are


class System(ABC):
    """A captioner of JPEG bytes, from a checkpoint or its artifacts, on one device and in one dtype."""

    name: str

    def __init__(self, checkpoint: Path, repository: Path, device: str, dtype: str) -> None:
        self.checkpoint = checkpoint
        self.repository = repository  # artifacts in that dtype
        self.device = device
        self.dtype = dtype

    @abstractmethod
    def load(self) -> None:
        """Make it ready to caption."""

    @abstractmethod
    def caption(self, images: Iterable[bytes], beams: int, batch: int) -> Iterator[str]:
        """Yield the caption of each image; `batch` images are in work at a time."""

    def prepare(self, images: list[bytes], beams: int) -> list[str]:
        """Warm up with one image and with all of them; return the captions, so that systems can be compared."""
        list(self.caption(images[:1], beams, 1))
        return list(self.caption(images, beams, len(images)))

    def latency(self, images: list[bytes], beams: int, seconds: float) -> list[float]:
        """Caption one image at a time for about so many seconds; return the milliseconds that each took."""
        times: list[float] = []
        began = time.perf_counter()
        for image in cycle(images):
            if len(times) >= MIN_LATENCIES and time.perf_counter() - began >= seconds:
                break
            start = time.perf_counter()
            list(self.caption([image], beams, 1))
            times.append((time.perf_counter() - start) * 1000)
        return times

    def throughput(self, images: list[bytes], beams: int, batch: int, seconds: float) -> float:
        """Caption batches for about so many seconds, at least one; return images a second."""
        began = time.perf_counter()
        count = sum(1 for _ in self.caption(_until(images, batch, began + seconds), beams, batch))
        return count / (time.perf_counter() - began)

    def peak_mb(self) -> float:
        """The most memory that the system has taken, in MB."""
        return _peak_mb(os.getpid())

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Stop whatever the system has started."""


class Transformers(System):
    """What a user writes with transformers: PIL, the processor, `generate` and the tokenizer."""

    name = "transformers"

    def load(self) -> None:
        """Load the checkpoint."""
        transformers.utils.logging.disable_progress_bar()
        self._torch_dtype = TORCH_DTYPES[self.dtype]
        model = BlipForConditionalGeneration.from_pretrained(self.checkpoint, dtype=self._torch_dtype)
        self._model = model.eval().to(self.device)
        self._processor = BlipImageProcessorPil.from_pretrained(self.checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)

    @torch.inference_mode()
    def caption(self, images: Iterable[bytes], beams: int, batch: int) -> Iterator[str]:
        """Caption one batch after the other."""
        for group in _batches(images, batch):
            opened = [Image.open(BytesIO(image)).convert("RGB") for image in group]
            pixels = self._processor(opened, return_tensors="pt")["pixel_values"]
            ids = self._model.generate(
                pixel_values=pixels.to(self.device, self._torch_dtype),
                num_beams=beams,
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
            )
            yield from self._tokenizer.batch_decode(ids, skip_special_tokens=True)


class BareEngine(System):
    """Blipstream without Triton: image loading, encoder and decoder in one process."""

    name = "engine"

    def load(self) -> None:
        """Load the artifacts."""
        runtime = RUNTIMES[self.device]
        self._encoder = load_encoder(runtime, self.repository / "encoder/1" / runtime, self.device)
        self._engine = load_engine(self.repository / "decoder/1/artifact", self.device)
        self._image_size = self._engine.config.vision.image_size

    def caption(self, images: Iterable[bytes], beams: int, batch: int) -> Iterator[str]:
        """Caption one batch after the other."""
        options = DecodingOptions(num_beams=beams, min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS)
        for group in _batches(images, batch):
            pixels = np.stack([load_pixels(image, self._image_size) for image in group])
            embeds = torch.as_tensor(self._encoder.encode(pixels))
            requests = [self._engine.request(each, options) for each in embeds]
            self._engine.generate(requests)
            yield from (request.captions[0].text for request in requests)


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

    def caption(self, images: Iterable[bytes], beams: int, batch: int) -> Iterator[str]:
        """Keep `batch` requests in flight."""
        captions = self._client.caption_many(
            images, max_in_flight=batch, num_beams=beams, min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS
        )
        for caption in captions:
            if isinstance(caption, BlipstreamError):
                raise caption
            yield caption.text

    def peak_mb(self) -> float:
        """The sum over the server's processes. What they share is counted several times."""
        return sum(_peak_mb(pid) for pid in processes_of_group(self._server.pid))

    def version(self) -> str:
        """The version of tritonserver."""
        with urllib.request.urlopen(f"{self._server.http_url}/v2") as answer:  # noqa: S310 - our own server
            return str(json.load(answer)["version"])

    def close(self) -> None:
        """Stop the server."""
        self._client.close()
        self._server.stop()


SYSTEMS: dict[str, type[System]] = {system.name: system for system in (Transformers, BareEngine, Triton)}


def _batches(images: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Group images; the next ones are taken when the group before is done."""
    remaining = iter(images)
    while group := list(islice(remaining, size)):
        yield group


def _until(images: list[bytes], batch: int, deadline: float) -> Iterator[bytes]:
    """Repeat the images, in whole batches, until the deadline has passed."""
    endless = cycle(images)
    while True:
        for _ in range(batch):
            yield next(endless)
        if time.perf_counter() >= deadline:
            return


def _peak_mb(pid: int) -> float:
    """The most resident memory that a process had. getrusage's would count what ran before exec, too."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
