# SPDX-License-Identifier: Apache-2.0
"""The options of a caption request, for the client's methods and the command line.

The server declares them in blipstream/options.py, and `make configs` copies them here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, get_type_hints

import numpy as np
import numpy.typing as npt

from blipstream_client._arguments import no_option
from blipstream_client._exceptions import InvalidRequest
from blipstream_client._tensors import Tensors
from blipstream_client._text import quoted


@dataclass(frozen=True)
class OptionType:
    """The type of an option in Python and in a tensor."""

    python: type
    dtype: type[np.generic]
    words: str


INT32 = OptionType(int, np.int32, "a whole number")
INT64 = OptionType(int, np.int64, "a whole number")
FP32 = OptionType(float, np.float32, "a number")
BOOL = OptionType(bool, np.bool_, "True or False")
BYTES = OptionType(str, np.object_, "text")

LIMITS: dict[type, Callable[[Any], Any]] = {int: np.iinfo, float: np.finfo}  # the range of a dtype


@dataclass(frozen=True)
class Option:
    """An optional input of the model."""

    type: OptionType
    default: Any  # the server's, for --help: the client sends only what it is given
    help: str
    low: float = -math.inf  # the server checks it: the client says it of what it cannot send
    high: float = math.inf
    other_names: tuple[str, ...] = ()  # what transformers calls it


class Options(TypedDict, total=False):
    """Options of a caption. An option that is absent or None has the server's default."""

    # options: `make configs` writes these lines
    # fmt: off
    prompt: Annotated[str | None, Option(
        BYTES, "", "The caption begins with these words.",
    )]
    include_prompt: Annotated[bool | None, Option(
        BOOL, True, "Whether the returned text includes the prompt.",
    )]
    adapter: Annotated[str | None, Option(
        BYTES, "", "The adapter to caption with, such as a language. Empty: none.",
    )]
    max_tokens: Annotated[int | None, Option(
        INT32, 30, "Tokens to generate at most. The end token counts, the prompt does not.",
        low=1,
        other_names=("max_new_tokens", "max_length",),
    )]
    min_tokens: Annotated[int | None, Option(
        INT32, 0, "Tokens to generate before the caption may end.",
        low=0,
        other_names=("min_new_tokens", "min_length",),
    )]
    num_captions: Annotated[int | None, Option(
        INT32, 1, "Captions to return, best first. Without do_sample, at most num_beams.",
        low=1, high=10,
        other_names=("num_return_sequences",),
    )]
    repetition_penalty: Annotated[float | None, Option(
        FP32, 1.0, "Above 1, tokens that have occurred become less likely.",
        low=0.01, high=100,
    )]
    no_repeat_ngram_size: Annotated[int | None, Option(
        INT32, 0, "No sequence of this many tokens occurs twice. 0: off.",
        low=0,
    )]
    num_beams: Annotated[int | None, Option(
        INT32, 1, "Beams to search with. 1: no beam search.",
        low=1, high=10,
    )]
    length_penalty: Annotated[float | None, Option(
        FP32, 1.0, "Beam search: scores are divided by length to this power: above 0 favours long captions.",
        low=-10, high=10,
    )]
    early_stopping: Annotated[bool | None, Option(
        BOOL, False, "Beam search: stop as soon as num_beams captions are complete.",
    )]
    do_sample: Annotated[bool | None, Option(
        BOOL, False, "Draw each token at random instead of taking the likeliest.",
    )]
    temperature: Annotated[float | None, Option(
        FP32, 1.0, "Sampling: below 1, likely tokens become likelier; above 1, less likely.",
        low=0.01, high=100,
    )]
    top_k: Annotated[int | None, Option(
        INT32, 0, "Sampling: draw from the k likeliest tokens. 0: from all.",
        low=0,
    )]
    top_p: Annotated[float | None, Option(
        FP32, 1.0, "Sampling: draw from the likeliest tokens that together have at least this probability.",
        low=0, high=1,
    )]
    seed: Annotated[int | None, Option(
        INT64, 0, "Sampling: the same seed gives the same captions.",
        low=-9223372036854775808, high=9223372036854775807,
    )]
    # fmt: on
    # end of options
    resize_mode: Annotated[str | None, Option(BYTES, "stretch", "stretch, center_crop or letterbox.")]


OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Options, include_extras=True).items()
}


def option_tensors(
    options: Options, known: Mapping[str, Option] = OPTIONS, others: Sequence[str] = ("timeout",)
) -> Tensors:
    """An input tensor [1, 1] for each option that is not None.

    `others` are the method's further arguments. Raises InvalidRequest for a value of the wrong type, TypeError for an
    option that does not exist.
    """
    tensors: Tensors = {}
    for name, value in options.items():
        if name not in known:
            meant = [own for own, option in known.items() if name in option.other_names]  # transformers calls it so
            raise no_option(name, [*known, *others], meant=meant)
        if value is not None:
            tensors[name] = option_tensor(name, value, known[name].type, known[name].low, known[name].high)
    return tensors


def option_tensor(
    name: str, value: object, kind: OptionType, low: float = -math.inf, high: float = math.inf
) -> npt.NDArray[Any]:
    """An option's value as a tensor [1, 1]. Raises InvalidRequest if it is of the wrong type, or does not fit it."""
    got = quoted(value)  # before it becomes a Python number: 0.01 in FP32 is 0.009999999776482582
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is not kind.python and not (kind.python is float and type(value) is int):
        raise InvalidRequest(f"{name} must be {kind.words}, got {got}")
    if isinstance(value, int | float) and kind.python in LIMITS:
        limits = LIMITS[kind.python](kind.dtype)
        if not limits.min <= value <= limits.max:
            lowest, highest = max(limits.min, low), min(limits.max, high)
            raise InvalidRequest(f"{name} must be between {lowest} and {highest}, got {got}")
    if isinstance(value, str):
        value = in_utf8(value, f"{name} must be text")
    return np.array([[value]], dtype=kind.dtype)


def in_utf8(text: str, what: str) -> bytes:
    """The text in UTF-8. Raises InvalidRequest, which begins with `what` it must be."""
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        wrong = f"{text[exc.start]!a} as its character {exc.start + 1:,}"
        raise InvalidRequest(f"{what} that UTF-8 can hold, without {wrong}") from exc
