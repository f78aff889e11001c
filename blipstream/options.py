# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of the decoder, with the defaults, which stand nowhere else."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from blipstream.errors import InvalidInput

MAX_BEAMS = 10
MAX_CAPTIONS = 10
MAX_PROMPT = 4096  # characters; no decoder has so many positions, and splitting a prompt into tokens takes time


@dataclass(frozen=True)
class DecodingOptions:
    """How the captions of one image are made. Raises InvalidInput where a value is out of range or contradicts another.

    Names and meanings are those of transformers' `generate`; `max_tokens` and `min_tokens` are its `max_new_tokens`
    and `min_new_tokens`, `num_captions` its `num_return_sequences`.
    """

    prompt: str = ""  # the caption begins with it
    include_prompt: bool = True  # whether the text that comes back does, too
    max_tokens: int = 30  # tokens to generate at most, the end token included, the prompt not
    min_tokens: int = 0  # tokens to generate before the caption may end
    num_captions: int = 1  # how many to return, best first; at most num_beams unless sampling
    repetition_penalty: float = 1.0  # above 1, tokens that are there already become less likely
    no_repeat_ngram_size: int = 0  # no run of so many tokens comes twice; 0: off

    num_beams: int = 1  # 1: no beam search
    length_penalty: float = 1.0  # beam search: scores are divided by length to this power
    early_stopping: bool = False  # beam search: stop as soon as num_beams captions are complete

    do_sample: bool = False  # draw tokens instead of taking the likeliest
    temperature: float = 1.0  # sampling: below 1 sharpens, above 1 flattens
    top_k: int = 0  # sampling: only from the k likeliest tokens; 0: from all
    top_p: float = 1.0  # sampling: only from the likeliest tokens that together are at least so probable
    seed: int = 0  # sampling: same seed, same captions

    def __post_init__(self) -> None:
        if len(self.prompt) > MAX_PROMPT:
            raise InvalidInput(f"prompt must have at most {MAX_PROMPT:,} characters, not {len(self.prompt):,}")
        self._check_range("max_tokens", 1)
        self._check_range("min_tokens", 0, self.max_tokens, " (max_tokens)")
        self._check_range("num_beams", 1, MAX_BEAMS)
        self._check_range("num_captions", 1, MAX_CAPTIONS)
        self._check_range("no_repeat_ngram_size", 0)
        self._check_range("top_k", 0)
        self._check_range("seed", -(2**63), 2**63 - 1)
        self._check_range("repetition_penalty", 0.01, 100)
        self._check_range("length_penalty", -10, 10)
        self._check_range("temperature", 0.01, 100)
        if not 0 < self.top_p <= 1:
            raise InvalidInput(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.do_sample and self.num_beams > 1:
            raise InvalidInput("do_sample and num_beams above 1 exclude each other: ask for one of them")
        if not self.do_sample:
            self._check_unused(("temperature", "top_k", "top_p", "seed"), "do_sample")
            if self.num_captions > self.num_beams:
                raise InvalidInput(
                    f"num_captions must be at most num_beams, which is {self.num_beams}, not {self.num_captions}: "
                    "raise num_beams, or set do_sample"
                )
        if self.num_beams == 1:
            self._check_unused(("length_penalty", "early_stopping"), "num_beams above 1")

    @property
    def strategy(self) -> Literal["greedy", "sample", "beam"]:
        """How tokens are chosen."""
        return "sample" if self.do_sample else "beam" if self.num_beams > 1 else "greedy"

    @property
    def max_rows(self) -> int:
        """Captions that grow at once."""
        return self.num_captions if self.do_sample else self.num_beams

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "DecodingOptions":
        """From a request's option tensors, each numpy [1]; words are bytes. Absent ones keep their default."""
        return cls(**{name: _scalar(name, tensor) for name, tensor in tensors.items()})

    @classmethod
    def from_rows(
        cls, tensors: Mapping[str, Any], images: int, positions: int | None = None
    ) -> "list[DecodingOptions]":
        """For each of a request's images, from option tensors with a row for each. Raises InvalidInput.

        Nor may any ask for more than fits the model's positions, where they are given.
        """
        if not images:
            raise InvalidInput("a request must have an image, and this one has none: send at least one row")
        for name, rows in tensors.items():
            if len(rows) != images:
                raise InvalidInput(f"{name} must have a row for each image, {images}, not {len(rows)}")
        options = [cls.from_tensors({name: rows[row] for name, rows in tensors.items()}) for row in range(images)]
        counts = sorted({each.num_captions for each in options})
        if len(counts) > 1:  # tensors are even
            raise InvalidInput(f"num_captions must be the same for all images of a request, not {counts}")
        if positions is not None:
            for each in options:
                each.check_fits(positions)
        return options

    def max_length(self, prompt_tokens: int) -> int:
        """Positions that a row may come to fill; the last token generated is never fed back."""
        return prompt_tokens + self.max_tokens - 1

    def check_fits(self, positions: int, prompt_tokens: int | None = None) -> None:
        """Raise InvalidInput where a prompt, of a start token at least, and max_tokens need more positions."""
        if self.max_length(prompt_tokens or 1) > positions:
            raise InvalidInput(
                f"prompt and max_tokens together must fit {positions} positions, but the prompt takes "
                f"{prompt_tokens or 'at least 1'} and max_tokens is {self.max_tokens}: shorten one of them"
            )

    def _check_range(self, name: str, low: float, high: float = math.inf, note: str = "") -> None:
        value = getattr(self, name)
        if not low <= value <= high:  # not a number is in no range
            allowed = f"at least {low}" if high == math.inf else f"between {low} and {high}{note}"
            raise InvalidInput(f"{name} must be {allowed}, not {value}")

    def _check_unused(self, names: tuple[str, ...], wanted: str) -> None:
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise InvalidInput(f"{field.name} has a meaning only with {wanted}: set that, or leave it out")


OPTION_NAMES = tuple(field.name for field in fields(DecodingOptions))
INPUT_NAMES = ("image", "resize_mode", *OPTION_NAMES)  # what a request for a caption may say
TRANSFORMERS_NAMES = {
    "max_new_tokens": "max_tokens", "max_length": "max_tokens",
    "min_new_tokens": "min_tokens", "min_length": "min_tokens",
    "num_return_sequences": "num_captions",
}  # fmt: skip
SHOWN = 40  # characters of a name that somebody sent


def refuse_parameters(request: Any, names: tuple[str, ...] = INPUT_NAMES) -> None:  # noqa: ANN401
    """Raise InvalidInput where a request of Triton's has parameters, which no model of ours reads.

    Triton makes them of whatever is no input of the model, as a misspelt option, and tells nobody.
    """
    try:
        parameters: str = request.parameters()
    except UnicodeDecodeError as exc:  # HTTP lets pass what is no text
        parameters = exc.object.decode(errors="replace")
    for name in json.loads(parameters) if parameters else ():
        if name == "id":  # which Triton has read, and leaves there
            continue
        if name in names:
            raise InvalidInput(f"{name} must be an input of the request, and not one of its parameters: send a tensor")
        near = TRANSFORMERS_NAMES.get(name) or next(iter(get_close_matches(name[:SHOWN], names, 1)), None)
        remedy = f"did you mean {near}?" if near in names else f"there are {', '.join(names)}"
        raise InvalidInput(f"there is no input {name[:SHOWN]!r}: {remedy}")


def _scalar(name: str, tensor: Any) -> Any:  # noqa: ANN401
    value = tensor.reshape(-1)[0]
    if tensor.dtype == "float32":
        return float(str(value))  # the number as somebody wrote it: 0.01, not the 0.009999999776 that FP32 makes of it
    if not isinstance(value, bytes):
        return value.item()
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{name} must be UTF-8 text: {exc.reason} at byte {exc.start}") from exc
