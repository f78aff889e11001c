# SPDX-License-Identifier: Apache-2.0
"""An adapter of the text decoder, loaded.

For some linear layers x -> W x + b it has a term of low rank, x -> W x + up down x + b: LoRA (arXiv:2106.09685). And it
may add words, with rows of their own in the embedding and the head.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from blipstream.adapters import WEIGHTS_NAME, AdapterConfig
from blipstream.config import TextConfig
from blipstream.errors import ArtifactError
from blipstream.text.tokenizer import Tokenizer

QUERY_KEY_VALUE = ("self_query", "self_key", "self_value")  # which the decoder computes at once, as qkv
WORD_EMBEDDING, HEAD_BIAS = "word_embedding", "head_bias"


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter's tensors, as AdapterStack has them, and what makes its tokens of texts."""

    config: AdapterConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer | None  # None: the checkpoint's

    @property
    def num_bytes(self) -> int:
        """The memory of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @classmethod
    def load(cls, folder: Path, text: TextConfig, device: torch.device, dtype: torch.dtype) -> "Adapter":
        """From its folder. Raises ArtifactError if it is broken, or does not fit a decoder of that shape."""
        config = AdapterConfig.load(folder)
        try:
            tokenizer = Tokenizer(folder, text) if config.num_words else None
            tensors = {name: tensor.to(device, dtype) for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
            tensors = _arranged(tensors, text, config.num_words)
        except Exception as exc:  # tokenizers raises no narrower one
            raise ArtifactError(
                f"adapter {folder.name} is broken, or does not fit this decoder: add it to the server again"
            ) from exc
        return cls(config, tensors, tokenizer)


def _arranged(tensors: dict[str, Tensor], text: TextConfig, num_words: int) -> dict[str, Tensor]:
    """The tensors of a file as AdapterStack has them. Raises ValueError or RuntimeError if they do not fit."""
    width, heads = text.hidden_size, text.num_heads
    sizes = dict.fromkeys((*QUERY_KEY_VALUE, "self_output", "cross_query", "cross_output"), (width, width))
    sizes |= {"cross_key": (text.encoder_hidden_size, width), "cross_value": (text.encoder_hidden_size, width)}
    sizes |= {"fc1": (width, text.intermediate_size), "fc2": (text.intermediate_size, width)}
    left = dict(tensors)

    def take(name: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The term of a layer of `size` (in, out): down [r, in] and up [out, r]. A layer without one has rank 0."""
        none = next(iter(tensors.values()))
        down = left.pop(f"{name}.down", none.new_empty(0, size[0]))
        up = left.pop(f"{name}.up", none.new_empty(size[1], 0))
        return down.view(up.shape[1], size[0]), up.view(size[1], len(down))

    arranged = {}

    def put(name: str, down: Tensor, up: Tensor) -> None:
        if up.numel():
            arranged[f"{name}.down"], arranged[f"{name}.up"] = down.contiguous(), up.contiguous()

    for number in range(text.num_layers):
        layer = f"layers.{number}."
        terms = {name: take(layer + name, size) for name, size in sizes.items()}
        downs, ups = zip(*(terms.pop(name) for name in QUERY_KEY_VALUE), strict=True)
        put(f"{layer}qkv", torch.cat(downs).T, torch.block_diag(*ups).T)  # type: ignore[no-untyped-call]
        down, up = terms.pop("cross_key")
        put(f"{layer}cross_key", down, up.view(heads, width // heads, -1))
        down, up = terms.pop("cross_value")
        put(f"{layer}cross_value", down.T, up.view(heads, width // heads, -1).transpose(1, 2))
        for name, (down, up) in terms.items():
            put(layer + name, down.T, up.T)
    down, up = take("head_dense", (width, width))
    put("head_dense", down.T, up.T)
    if num_words:
        arranged[WORD_EMBEDDING] = left.pop(WORD_EMBEDDING).view(num_words, width)
        arranged[HEAD_BIAS] = left.pop(HEAD_BIAS).view(num_words)
    if left:
        raise ValueError(f"{next(iter(left))} is not known")
    return arranged
