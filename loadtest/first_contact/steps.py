# SPDX-License-Identifier: Apache-2.0
"""The steps of first contact, one in each process. On a CPU the same code runs, with less to do."""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from threading import Semaphore

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from torch import Tensor, nn

from blipstream.config import CheckpointConfig, TextConfig, VisionConfig
from blipstream.decoding import WEIGHTS_NAME, Engine, Request, TextDelta, load_engine
from blipstream.decoding.scheduler import Scheduler
from blipstream.files import SAMPLES
from blipstream.images.pixels import load_pixels
from blipstream.images.shapes import Pixels
from blipstream.options import DecodingOptions
from blipstream.server import arguments
from blipstream.server.triton import TritonServer
from blipstream.text.decoder import TextDecoder
from blipstream.text.tokenizer import TOKENIZER_NAME
from blipstream.vision import Encoder, load_encoder
from blipstream.vision.torch import WEIGHTS_NAME as ENCODER_WEIGHTS_NAME
from blipstream.vision.vit import VisionTransformer
from blipstream_bench import random_checkpoint
from blipstream_bench.clients import ClientProcesses
from blipstream_bench.plans import CLIENTS, RUNTIMES

GFLOP = 2 * 55.5  # of base's encoder, for one image


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    layers: int  # of base
    waves: tuple[int, ...]  # requests that arrive together
    many: int  # requests at once
    batches: tuple[int, ...]
    rows: tuple[int, ...]
    warm_ups: int  # runs that are not timed; a CUDA graph is recorded in the second
    runs: int  # that are timed
    arrivals: int  # requests of each strategy
    in_flight: int
    seconds: float  # of a measurement through Triton


SIZES = {
    "cuda": Sizes(12, (1, 3, 8, 20, 64, 5), 80, (1, 2, 4, 8, 16, 32, 64), (64, 256, 512), 3, 10, 40, 256, 10),
    "cpu": Sizes(1, (1, 3, 8), 12, (1, 2), (2, 4), 1, 1, 4, 4, 0),
}
FULL, LONG = (DecodingOptions(min_tokens=tokens, max_tokens=tokens) for tokens in (12, 45))
STRATEGIES = {
    "greedy": DecodingOptions(),
    "greedy, 45 tokens": LONG,
    "3 beams": DecodingOptions(num_beams=3),
    "5 beams": DecodingOptions(num_beams=5, num_captions=5),
    "sampling": DecodingOptions(do_sample=True, seed=1),
    "4 samples": DecodingOptions(do_sample=True, num_captions=4, top_p=0.9, seed=1),
    "constraints": DecodingOptions(no_repeat_ngram_size=2, repetition_penalty=1.2),
}


@dataclass(frozen=True)
class Contact:
    """Where the steps run, and with what."""

    device: str
    repository: Path  # built from the demo checkpoint
    work: Path
    sizes: Sizes

    # the steps, in the order of first_contact

    def versions(self) -> None:
        """What is here, and the switches of PyTorch that change numbers or speed."""
        say("Python", platform.python_version(), "torch", torch.__version__, "numpy", np.__version__)
        if self.device == "cuda":
            say("CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
            say(torch.cuda.get_device_properties(0))
            query = "name,driver_version,clocks.max.sm,power.limit,mig.mode.current"
            subprocess.run([find("nvidia-smi") or "nvidia-smi", f"--query-gpu={query}", "--format=csv"], check=False)
        cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
        say("f32 products", torch.get_float32_matmul_precision(), "TF32 convolutions", cudnn.allow_tf32)
        say("sums in f16", cuda.matmul.allow_fp16_reduced_precision_reduction)
        kinds = ("flash", "mem_efficient", "math", "cudnn")
        say("attention", {kind: getattr(cuda, f"{kind}_sdp_enabled")() for kind in kinds})
        for program in ("compute-sanitizer", "nvidia-cuda-mps-control", "nsys", "tritonserver"):
            say(program, find(program) or "is not here")

    def demo(self) -> None:
        """The engine of the demo checkpoint as it is served: warm-up, then short, long and many captions."""
        encoder, engine = self._demo_encoder(), load_engine(self.repository / "decoder/1/artifact", self.device)
        say("encoder", encoder.dtype, "decoder", engine.dtype, "rows", engine.max_rows)
        embeds = torch.as_tensor(encoder.encode(samples(encoder.config)))
        began = time.perf_counter()
        scheduler = Scheduler(engine, warm_up=True)
        say(f"warm-up {time.perf_counter() - began:.2f} s")
        for count, options in ((8, FULL), (1, LONG), (self.sizes.many, FULL)):
            for _ in range(3):  # a graph is recorded the second time
                requests = [engine.request(embed, options) for embed in islice(cycle(embeds), count)]
                seconds = run(scheduler, requests)
                say(f"{count} x {options.max_tokens} tokens: {seconds * 1000:.1f} ms")
        requests = [engine.request(embed, DecodingOptions()) for embed in embeds]
        run(scheduler, requests)
        for request in requests:
            say(" ", request.captions[0].text)
        scheduler.close()

    def neighbours(self) -> None:
        """Each strategy among changing numbers of others, in f32, against the CPU's engine with each request alone."""
        folder = self.repository / "decoder/1/artifact"
        theirs = Engine.load(folder, "cpu", "f32")
        ours = Engine.load(folder, self.device, "f32", fixed_shapes=True)
        encoder = self._demo_encoder()
        embeds = torch.as_tensor(encoder.encode(samples(encoder.config))).float().cpu()
        kinds = [(embed, name) for embed in embeds for name in STRATEGIES]
        expected = []
        for embed, name in kinds:
            alone = theirs.request(embed, STRATEGIES[name])
            theirs.generate([alone])
            expected.append(alone)
        scheduler = Scheduler(ours)
        compared, wrong, error = 0, 0, 0.0
        order = cycle(range(0, 9 * len(kinds), 9))  # 9 and the number of kinds, 56, have no factor in common
        seen = set()
        for _ in range(2):
            for wave in self.sizes.waves:
                chosen = [place % len(kinds) for place in islice(order, wave)]
                requests = [ours.request(kinds[place][0], STRATEGIES[kinds[place][1]]) for place in chosen]
                run(scheduler, requests)
                for place, request in zip(chosen, requests, strict=True):
                    compared += 1
                    seen.add(kinds[place][1])
                    pairs = list(zip(request.captions, expected[place].captions, strict=True))
                    if any(mine.text != other.text for mine, other in pairs):
                        wrong += 1
                        say("differs:", kinds[place][1], [(mine.text, other.text) for mine, other in pairs])
                    error = max([error, *(abs(mine.score - other.score) for mine, other in pairs)])
        scheduler.close()
        say(f"{compared - wrong} of {compared} requests in {len(seen)} strategies equal those of the CPU")
        say(f"scores differ by {error:.1e} at most")
        if wrong:
            sys.exit(1)

    def sanitizer(self) -> None:
        """The step before, less of it, under NVIDIA's check of memory accesses."""
        program = find("compute-sanitizer")
        if program is None or self.device == "cpu":
            say("not run: it needs a GPU and compute-sanitizer")
            return
        few = [sys.executable, __file__, "neighbours", *sys.argv[2:], "--few"]
        sys.exit(subprocess.run([program, "--error-exitcode", "1", *few], check=False).returncode)

    def base(self) -> None:
        """Base's shapes with random weights, in each dtype, against f32 on the CPU."""
        folder = self._base()
        pixels = np.random.default_rng(0).integers(0, 256, (2, 384, 384, 3), np.uint8)
        expected = torch.as_tensor(load_encoder("torch", folder / "encoder/1/torch", "cpu", "f32").encode(pixels))
        ids = torch.tensor([[30522, 1037, 2450], [30522, 1996, 3899]])
        logits = load_engine(folder / "decoder/1/artifact", "cpu", "f32").logits(ids, expected)
        for dtype in ("f32", "f16") if self.device == "cuda" else ("f32",):
            embeds = load_encoder("torch", folder / "encoder/1/torch", self.device, dtype).encode(pixels)
            ours = load_engine(folder / "decoder/1/artifact", self.device, dtype).logits(ids, expected)
            say(f"{dtype}: relative error of the encoder {relative(embeds, expected):.1e}, ", end="")
            say(f"of the decoder {relative(ours, logits):.1e}")

    def encoder(self) -> None:
        """Images a second of base's encoder, by batch size, with ready pixels."""
        encoder = load_encoder("torch", self._base() / "encoder/1/torch", self.device)
        for batch in self.sizes.batches:
            pixels = np.zeros((batch, 384, 384, 3), np.uint8)
            seconds = self._timed(partial(encoder.encode, pixels))
            rate = batch / seconds
            tflops = rate * GFLOP * self.sizes.layers / 12 / 1000
            say(f"{batch:4} images: {seconds * 1000:8.2f} ms, {rate:7.0f} images/s, {tflops:6.2f} TFLOP/s")

    def decoder(self) -> None:
        """Base's decoder at several numbers of rows, and where the time of the largest goes."""
        engine = load_engine(self._base() / "decoder/1/artifact", self.device)
        for rows in self.sizes.rows:
            seconds = self._caption(engine, rows)
            say(f"{rows:4} rows x 12 tokens: {seconds * 1000:8.1f} ms, {seconds / rows * 1e6:7.0f} us an image")
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            caption(engine, self.sizes.rows[-1])
        kind = "self_cuda_time_total" if self.device == "cuda" else "self_cpu_time_total"
        say(profile.key_averages().table(sort_by=kind, row_limit=12, max_name_column_width=60))

    def widths(self) -> None:
        """Whether 577 patches, an odd number, cost more than 584: single products, then base's whole decoder."""
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        images, heads, size, width = self.sizes.batches[-1], 12, 64, 768

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype, device=self.device)

        for patches in (577, 584):
            q = random(images, heads, patches, size)
            x, queries = random(images, patches, width), random(images, heads, width)
            weights = random(images, heads, patches)
            linear = nn.Linear(width, 4 * width, dtype=dtype, device=self.device).requires_grad_(False)
            works: dict[str, Callable[[], object]] = {
                "encoder's attention": partial(F.scaled_dot_product_attention, q, q, q),
                "encoder's products": partial(linear, x),
                "decoder's scores": partial(torch.matmul, queries, x.transpose(1, 2)),
                "decoder's mix": partial(torch.matmul, weights, x),
            }
            for name, work in works.items():
                say(f"{patches}: {name:<20}{self._timed(work) * 1e6:9.0f} us")
        rows = self.sizes.rows[-1]
        for patches, multiple in ((577, 1), (584, 8)):
            engine = Engine.load(self._base() / "decoder/1/artifact", self.device, patch_multiple=multiple)
            say(f"{patches}: {rows} rows x 12 tokens: {self._caption(engine, rows) * 1000:8.1f} ms")

    def arrivals(self) -> None:
        """How long plain captions take while each strategy comes for the first time, and for the second."""
        engine = load_engine(self.repository / "decoder/1/artifact", self.device)
        scheduler = Scheduler(engine)
        embeds = torch.zeros(engine.image_embeds_shape)
        for name, options in STRATEGIES.items():
            for turn in ("first", "again"):
                times = []
                for _ in range(self.sizes.arrivals):
                    other = engine.request(embeds, options)
                    scheduler.submit(other, lambda _: None)
                    times.append(run(scheduler, [engine.request(embeds, FULL)]) * 1000)
                median = statistics.median(times)
                say(f"{name:<20}{turn}: plain captions take {median:6.1f} ms, at most {max(times):6.1f}")
        scheduler.close()

    def triton(self) -> None:
        """Base (on a CPU, the demo checkpoint) through Triton, with a small and a large pool, and with MPS."""
        repository = self._base() if self.device == "cuda" else self.repository
        for name, pool in (("64 MiB", 2**26), ("1 GiB", 2**30)):
            arguments.CUDA_POOL_BYTES = pool
            self._serve(repository, f"pool of {name}")
            if self.device == "cpu":
                return
        if not find("nvidia-cuda-mps-control"):
            say("MPS is not here")
            return
        with mps(self.work):
            self._serve(repository, "pool of 1 GiB, MPS")

    # what they share

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds of one run, the mean of some."""
        for _ in range(self.sizes.warm_ups):
            work()
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(self.sizes.runs):
            work()
        synchronize(self.device)
        return (time.perf_counter() - began) / self.sizes.runs

    def _caption(self, engine: Engine, rows: int) -> float:
        """Seconds to caption, the median of some runs."""
        for _ in range(self.sizes.warm_ups):
            caption(engine, rows)
        return statistics.median(caption(engine, rows) for _ in range(self.sizes.runs))

    def _demo_encoder(self) -> Encoder:
        folder = self.repository / "encoder/1"
        runtime = "torch" if (folder / "torch").exists() else RUNTIMES[self.device]
        return load_encoder(runtime, folder / runtime, self.device)

    def _base(self) -> Path:
        """A repository with base's shapes and random weights, which the first step that needs it makes."""
        folder = self.work / "base"
        if not folder.exists():
            unfinished = self.work / f"base-{os.getpid()}"
            shutil.copytree(self.repository, unfinished, symlinks=False)
            write_base(unfinished, self.sizes.layers)
            unfinished.rename(folder)
        return folder

    def _serve(self, repository: Path, name: str) -> None:
        images = [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))]
        with TritonServer(repository, config=self.device, http_port=0, grpc_port=0, metrics_port=0) as server:
            clients = ClientProcesses(server.grpc_url, images, CLIENTS[self.device])
            try:
                clients.answer_until(0, "greedy", self.sizes.in_flight)  # warms up
                began = time.perf_counter()
                count = sum(clients.answer_until(began + self.sizes.seconds, "greedy", self.sizes.in_flight))
                rate = count / (time.perf_counter() - began)
                say(f"Triton, {self.sizes.in_flight} in flight, {name}: {rate:.0f} images/s")
            finally:
                clients.close()


def write_base(repository: Path, layers: int) -> None:
    """Replace a repository's artifacts by base's shapes with random weights; the encoder's for PyTorch."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    vision = VisionConfig(384, 16, 768, 3072, layers, 12, 1e-5, mean, std)
    special = random_checkpoint.SPECIAL_TOKENS
    text = TextConfig(
        random_checkpoint.VOCABULARY, 768, 768, 3072, layers, 12, 512, 1e-12, special["[DEC]"], special["[SEP]"]
    )
    config = CheckpointConfig("base, random weights", "0" * 64, "auto", vision, text)
    torch.manual_seed(0)
    modules = {
        "encoder/1/torch": (VisionTransformer(vision), ENCODER_WEIGHTS_NAME),
        "decoder/1/artifact": (TextDecoder(text), WEIGHTS_NAME),
    }
    for place, (module, name) in modules.items():
        folder = repository / place
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: random_weight(key, value) for key, value in module.state_dict().items()}
        (folder / name).unlink(missing_ok=True)  # it may be shared with another repository
        save_file(weights, folder / name)
    for place in ("preprocess/1/artifact", *modules):
        (repository / place / "config.json").unlink(missing_ok=True)
        config.save(repository / place)
    tokenizer = repository / "decoder/1/artifact" / TOKENIZER_NAME
    tokenizer.unlink(missing_ok=True)
    random_checkpoint._write(tokenizer, random_checkpoint.tokenizer_settings())


def random_weight(name: str, like: Tensor) -> Tensor:
    """Norms are neutral, pixels become about -1 to 1, and the rest has the standard deviation of trained weights."""
    neutral = {"scale": 1 / 128, "shift": -1.0}
    if name in neutral:
        return torch.full_like(like, neutral[name])
    if "norm" in name:
        return torch.ones_like(like) if name.endswith("weight") else torch.zeros_like(like)
    return torch.empty_like(like).normal_(std=random_checkpoint.STANDARD_DEVIATION)


def samples(config: CheckpointConfig) -> Pixels:
    """The demo's samples as pixels [B, H, W, 3]."""
    files = sorted(SAMPLES.glob("*.jpg"))
    return np.stack([load_pixels(path.read_bytes(), config.vision.image_size) for path in files])


def run(scheduler: Scheduler, requests: list[Request]) -> float:
    """Run requests that arrive together; return the seconds until the last is done. Raises the first error."""
    done, errors = Semaphore(0), []

    def listen(delta: TextDelta) -> None:
        if delta.is_last:
            if delta.error:
                errors.append(delta.error)
            done.release()

    began = time.perf_counter()
    for request in requests:
        scheduler.submit(request, listen)
    for _ in requests:
        done.acquire()
    if errors:
        raise errors[0]
    return time.perf_counter() - began


def caption(engine: Engine, rows: int) -> float:
    """Caption noise. Returns the seconds that it takes, without those in which requests are made."""
    embeds = torch.randn(engine.image_embeds_shape)
    requests = [engine.request(embeds, FULL) for _ in range(rows)]
    synchronize(requests[0].image_embeds.device.type)
    began = time.perf_counter()
    engine.generate(requests)  # reads the last token, so the device has done all of it
    return time.perf_counter() - began


def synchronize(device: str) -> None:
    """Wait until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖."""
    return float((ours.cpu().double() - theirs.double()).norm() / theirs.double().norm())


@contextmanager
def mps(work: Path) -> Iterator[None]:
    """NVIDIA's Multi-Process Service: while it runs, processes that start share the GPU at the same time."""
    control = find("nvidia-cuda-mps-control") or "nvidia-cuda-mps-control"
    folder = work / "mps"
    folder.mkdir(exist_ok=True)
    os.environ["CUDA_MPS_PIPE_DIRECTORY"] = os.environ["CUDA_MPS_LOG_DIRECTORY"] = str(folder)
    with subprocess.Popen([control, "-f"]) as daemon:
        time.sleep(2)  # it says nowhere when it is ready
        try:
            yield
        finally:
            daemon.terminate()


def find(program: str) -> str | None:
    """A program's path, also where CUDA and Triton put theirs."""
    places = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/opt/tritonserver/bin", "/usr/local/nvidia/bin"]
    return shutil.which(program, path=os.pathsep.join(places))


def say(*words: object, end: str = "\n") -> None:
    """Print at once."""
    print(*words, end=end, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("step")
    parser.add_argument("--device", required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--few", action="store_true")
    given = parser.parse_args()
    chosen = SIZES["cpu" if given.few else given.device]
    with torch.inference_mode():
        getattr(Contact(given.device, given.repository, given.work, chosen), given.step)()
