# SPDX-License-Identifier: Apache-2.0
"""What adapters cost: captions by eight of them in one batch against captions without any, in turns in one process."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from blipstream.adapters import FOLDER_NAME, WEIGHTS_NAME, AdapterConfig
from blipstream.config import CheckpointConfig
from blipstream.decoding import Engine, load_engine
from blipstream.options import DecodingOptions
from blipstream.text.adapter import Adapter
from blipstream.weights import TORCH_DTYPES
from blipstream_bench.plans import NEW_TOKENS, BenchPlan

NUM_ADAPTERS, RANK, BATCH = 8, 16, 32


def save_random_adapters(artifact: Path) -> list[str]:
    """Write adapters with terms in all linear layers beside a decoder's artifact, and return their names."""
    config = CheckpointConfig.load(artifact)
    text = config.text
    width, wide = text.hidden_size, text.intermediate_size
    sizes = {f"self_{each}": (width, width) for each in ("query", "key", "value", "output")}
    sizes |= {"cross_query": (width, width), "cross_output": (width, width), "fc1": (width, wide), "fc2": (wide, width)}
    sizes |= {f"cross_{each}": (text.encoder_hidden_size, width) for each in ("key", "value")}
    layers = {f"layers.{number}.{name}": size for number in range(text.num_layers) for name, size in sizes.items()}
    layers["head_dense"] = (width, width)
    names = [f"adapter-{number}" for number in range(NUM_ADAPTERS)]
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer, (inputs, outputs) in layers.items():
            tensors[f"{layer}.down"] = torch.randn(RANK, inputs, generator=generator).half() / 50
            tensors[f"{layer}.up"] = torch.randn(outputs, RANK, generator=generator).half() / 50
        folder = artifact.parent / FOLDER_NAME / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_NAME)
        AdapterConfig(config.checkpoint, config.revision, str(seed)).save(folder)
    return names


def adapter_costs(
    repositories: dict[str, Path], plan: BenchPlan, device: str, say: Callable[[str], None]
) -> Iterator[str]:
    """Say for each number format what adapters cost, given its repository. `say` hears what is being done."""
    for dtype, repository in repositories.items():
        artifact = repository / "decoder/1/artifact"
        names = save_random_adapters(artifact)
        engine = load_engine(artifact, device)
        embeds = torch.rand(BATCH, *engine.image_embeds_shape)

        def seconds(adapters: Sequence[str], engine: Engine = engine, embeds: Tensor = embeds) -> float:
            options = [
                DecodingOptions(adapter=adapters[number % len(adapters)], min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS)
                for number in range(BATCH)
            ]
            requests = engine.requests(embeds, options)
            began = time.perf_counter()
            engine.generate(requests)
            return time.perf_counter() - began

        times = []
        for number in range(plan.rounds + 1):
            say(f"engine {dtype}: round {number} of {plan.rounds}")
            times.append((seconds([""]), seconds(names)))
        none, some = (statistics.median(each) for each in zip(*times[1:], strict=True))  # the first warms up
        text = engine.config.text
        loaded = Adapter.load(artifact.parent / FOLDER_NAME / names[0], text, embeds.device, TORCH_DTYPES[engine.dtype])
        yield (
            f"engine {dtype}: {BATCH} captions by {NUM_ADAPTERS} adapters take {some / none:.2f} times as long as by "
            f"none ({some:.2f} against {none:.2f} s); an adapter of rank {RANK} takes {loaded.num_bytes / 1e6:.1f} MB"
        )
