# SPDX-License-Identifier: Apache-2.0
"""What the host does for each step of the decoder, with a device that answers at once: no GPU is needed.

python loadtest/host_work.py --rows 256 --tokens 12

The engine makes steps of fixed shapes, as on a GPU, with a decoder so small that only Python and PyTorch's calls are
left. The forward itself, which a GPU replays as one CUDA graph, does not count. Times are processor time of each
thread, so a busy machine changes them little.
"""

import cProfile
import json
import pstats
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from blipstream.config import CheckpointConfig, TextConfig, VisionConfig
from blipstream.cuda_graphs import Graphs
from blipstream.decoding import Engine
from blipstream.decoding.scheduler import Scheduler
from blipstream.options import DecodingOptions
from blipstream.text.decoder import TextDecoder
from blipstream.text.tokenizer import TOKENIZER_NAME, Tokenizer
from blipstream_bench.random_checkpoint import tokenizer_settings

WIDTH, VOCABULARY, START, END = 8, 512, 1, 2
WARM_UP, ROUNDS = 2, 20  # so many times the rows' captions
TOP = 12  # functions of the profile that are shown


def tiny_engine(rows: int) -> Engine:
    """An engine whose forward costs next to nothing, with as large a tokenizer as base has."""
    vision = VisionConfig(16, 16, WIDTH, WIDTH, 1, 1, 1e-5, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    text = TextConfig(VOCABULARY, WIDTH, WIDTH, WIDTH, 1, 1, 512, 1e-5, START, END)
    torch.manual_seed(0)
    decoder = TextDecoder(text)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with TemporaryDirectory() as folder:
        (Path(folder) / TOKENIZER_NAME).write_text(json.dumps(tokenizer_settings()), encoding="utf-8")
        tokenizer = Tokenizer(Path(folder), text)
    return Engine(decoder, tokenizer, CheckpointConfig("tiny", "", "f32", vision, text), "f32", rows, fixed_shapes=True)


class Device:
    """Stands for the GPU: it counts the processor time of forwards, so that they can be left out."""

    def __init__(self, monitored: cProfile.Profile | None = None) -> None:
        self.seconds, self.steps = 0.0, 0
        self._profile = monitored
        self._is_profiling = False

    def run(self, run: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        """A forward."""
        if self._profile and self._is_profiling:
            self._profile.disable()
        began = time.thread_time()
        result = run(*arguments)
        self.seconds += time.thread_time() - began
        self.steps += 1
        if self._profile:
            self._is_profiling = True
            self._profile.enable()
        return result


def measure(rows: int, tokens: int, *, streams: bool, profile: cProfile.Profile | None = None) -> dict[str, float]:
    """Microseconds that each thread works for one image, and the stepping thread for one step."""
    engine, device = tiny_engine(rows), Device(profile)
    run = Graphs.run
    Graphs.run = lambda *arguments: device.run(run, *arguments)  # type: ignore[method-assign]
    others = set(threading.enumerate())
    try:
        scheduler = Scheduler(engine, max_waiting=rows, warm_up=True)
        stepping, delivering = (each for each in threading.enumerate() if each not in others)
        clocks = [time.pthread_getcpuclockid(each.ident or 0) for each in (stepping, delivering)]
        embeds = torch.zeros(engine.image_embeds_shape, dtype=torch.float16)

        def feed(count: int, first: Callable[[int], int]) -> None:
            left = threading.Semaphore(0)
            for number in range(count):
                length = first(number)
                options = DecodingOptions(max_tokens=length, min_tokens=length)
                scheduler.wait_for_room()
                scheduler.submit(
                    engine.request(embeds, options),
                    lambda delta: left.release() if delta.is_last else None,
                    streams=streams,
                )
            for _ in range(count):
                left.acquire()

        feed(WARM_UP * rows, lambda number: 1 + number % tokens)
        before = [time.thread_time(), *map(time.clock_gettime, clocks)]
        device.seconds, device.steps = 0.0, 0
        # shorter ones come first, so that in each step some end and others join
        feed(ROUNDS * rows, lambda number: 1 + number % tokens if number < rows else tokens)
        after = [time.thread_time(), *map(time.clock_gettime, clocks)]
        scheduler.close()
    finally:
        Graphs.run = run  # type: ignore[method-assign]
    making, step, answers = (1e6 * (end - begin) for begin, end in zip(before, after, strict=True))
    step -= 1e6 * device.seconds
    images = ROUNDS * rows
    return {
        "a step": step / device.steps,
        "an image: making its request": making / images,
        "an image: its steps": step / images,
        "an image: answering": answers / images,
        "an image, in all": (making + step + answers) / images,
    }


def profiled(rows: int, tokens: int, *, streams: bool) -> pstats.Stats:
    """What the stepping thread does, without forwards."""
    profile = cProfile.Profile(time.thread_time)  # by wall clock, it would count how long others hold Python's lock
    measure(rows, tokens, streams=streams, profile=profile)
    return pstats.Stats(profile)


@click.command(context_settings={"show_default": True})
@click.option("--rows", type=click.IntRange(1), default=256, help="Captions that grow at once.")
@click.option("--tokens", type=click.IntRange(1), default=12, help="Length of a caption.")
@click.option("--streams", is_flag=True, help="Each client gets each token at once.")
def main(rows: int, tokens: int, streams: bool) -> None:
    """Show the host's work in microseconds, and the functions in which most of it lies."""
    torch.set_num_threads(1)
    table = Table("processor time of", "microseconds")
    for name, microseconds in measure(rows, tokens, streams=streams).items():
        table.add_row(name, f"{microseconds:,.1f}")
    console = Console()
    console.print(table)
    stats = profiled(rows, tokens, streams=streams)
    stats.sort_stats("tottime").print_stats(TOP)


if __name__ == "__main__":
    main()
