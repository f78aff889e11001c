# SPDX-License-Identifier: Apache-2.0
"""The systems that the benchmark compares, with one interface: transformers, the engine alone, and Triton.

Each captions JPEG bytes with `NEW_TOKENS` new tokens for an image, in a process of its own. All of them decode images
on all cores.
"""

import json
import os
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
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
from blipstream_bench.clients import TIMEOUT, ClientProcesses, captions, until
from blipstream_bench.plans import CLIENTS, COMPARED, NEW_TOKENS, RUNTIMES
from blipstream_client import Client

MIN_LATENCIES = 3  # images to time alone, however slow they are


class System(ABC):
    """A captioner of JPEG bytes, from a checkpoint or its artifacts, on one device and in one dtype."""

    name: str

    def __init__(self, checkpoint: Path, repository: Path, device: str, dtype: str, images: list[bytes]) -> None:
        self.checkpoint = checkpoint
        self.repository = repository  # artifacts in that dtype
        self.device = device
        self.dtype = dtype
        self.images = images  # captioned again and again

    @abstractmethod
    def load(self) -> None:
        """Make it ready to caption."""

    @abstractmethod
    def caption(self, images: Iterable[bytes], beams: int, batch: int) -> Iterator[str]:
        """Yield the caption of each image; `batch` images are in work at a time."""

    def compared(self, beams: int) -> list[str]:
        """The captions of the first images, by which systems are compared."""
        images = self.images[:COMPARED]
        return list(self.caption(images, beams, len(images)))

    def latency(self, beams: int, seconds: float) -> list[float]:
        """Caption one image at a time for about so many seconds; return the milliseconds that each took."""
        times: list[float] = []
        began = time.perf_counter()
        for image in cycle(self.images):
            if len(times) >= MIN_LATENCIES and time.perf_counter() - began >= seconds:
                break
            start = time.perf_counter()
            list(self.caption([image], beams, 1))
            times.append((time.perf_counter() - start) * 1000)
        return times

    def throughput(self, beams: int, batch: int, seconds: float) -> float:
        """Caption batches for about so many seconds, at least one; return images a second."""
        began = time.perf_counter()
        count = self.caption_until(began + seconds, beams, batch)
        return count / (time.perf_counter() - began)

    def caption_until(self, deadline: float, beams: int, batch: int) -> int:
        """Caption whole batches until time.perf_counter() reaches the deadline; return the number of images."""
        return sum(1 for _ in self.caption(until(self.images, batch, deadline), beams, batch))

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

        scale = torch.tensor([self._processor.rescale_factor], dtype=torch.float64)
        mean, std = torch.tensor(self._processor.image_mean), torch.tensor(self._processor.image_std)
        self._scale = (scale / std).float().view(3, 1, 1).to(self.device)
        self._shift = (-mean / std).float().view(3, 1, 1).to(self.device)

    @torch.inference_mode()
    def caption(self, images: Iterable[bytes], beams: int, batch: int) -> Iterator[str]:
        """Caption one batch after the other."""
        for pixels in decoded(images, self._pixels, batch, self.device):
            # the processor would rescale and normalize on one core
            pixel_values = torch.from_numpy(pixels).to(self.device) * self._scale + self._shift
            ids = self._model.generate(
                pixel_values=pixel_values.to(self._torch_dtype),
                num_beams=beams,
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
            )
            yield from self._tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _pixels(self, image: bytes) -> npt.NDArray[np.uint8]:
        """uint8 pixels [3, H, W]."""
        opened = Image.open(BytesIO(image)).convert("RGB")
        pixels: npt.NDArray[np.uint8] = self._processor(
            opened, do_rescale=False, do_normalize=False, return_tensors="np"
        )["pixel_values"][0]
        return pixels


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
        for pixels in decoded(images, self._pixels, batch, self.device):
            embeds = torch.as_tensor(self._encoder.encode(pixels))
            requests = [self._engine.request(each, options) for each in embeds]
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

    def caption(self, images: Iterable[bytes], beams: int, batch: int) -> Iterator[str]:
        """Keep `batch` requests in flight."""
        return captions(self._client, images, beams, batch)

    def caption_until(self, deadline: float, beams: int, batch: int) -> int:
        """The same by several clients, so that none of them is the bound."""
        return sum(self._clients.caption_until(deadline, beams, batch))

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


SYSTEMS: dict[str, type[System]] = {system.name: system for system in (Transformers, BareEngine, Triton)}


def decoded(
    images: Iterable[bytes], decode: Callable[[bytes], npt.NDArray[np.uint8]], size: int, device: str
) -> Iterator[npt.NDArray[np.uint8]]:
    """Batches of images, decoded by all cores: for a GPU while the batch before is in work, else once that is done."""
    remaining = iter(images)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:

        def begin() -> Iterator[npt.NDArray[np.uint8]]:
            return threads.map(decode, list(islice(remaining, size)))

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
