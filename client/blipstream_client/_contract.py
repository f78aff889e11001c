# SPDX-License-Identifier: Apache-2.0
"""The tensors that go to the model and come back, without any network.

Every tensor has shape [1, 1] or [1, K]: a batch of one image, and K captions for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypedDict, get_type_hints

import numpy as np
import numpy.typing as npt

from blipstream_client._exceptions import InvalidRequest, ServerError, excerpt, quoted

Tensors: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Caption:
    """What the model says of one image."""

    text: str
    score: float  # the higher, the likelier to the model
    num_tokens: int
    token_scores: tuple[float, ...] = ()  # each token's log-probability
    alternatives: "tuple[Caption, ...]" = ()  # the next best captions, if num_captions asked for them
    finish_reason: str | None = None  # of a stream: "stop", or "length" if max_tokens ended it


@dataclass(frozen=True)
class Piece:
    """What a caption has grown by."""

    text: str  # all pieces joined are the caption
    score: float  # log-probability of what is new
    caption: Caption | None = None  # all of it, with the last piece


@dataclass(frozen=True)
class Kind:
    """How a kind of option is written in Python and in a tensor."""

    python: type
    dtype: type[np.generic]


INT32 = Kind(int, np.int32)
INT64 = Kind(int, np.int64)
FP32 = Kind(float, np.float32)
BOOL = Kind(bool, np.bool_)
BYTES = Kind(str, np.object_)

LIMITS: dict[type, Callable[[Any], Any]] = {int: np.iinfo, float: np.finfo}  # what is not within is no number


@dataclass(frozen=True)
class Option:
    """An optional input of the model."""

    kind: Kind
    help: str


class Options(TypedDict, total=False):
    """What may be asked of a caption. The server knows the defaults of what is absent or None."""

    prompt: Annotated[str | None, Option(BYTES, "Words the caption starts with.")]
    max_tokens: Annotated[int | None, Option(INT32, "The most tokens a caption may have.")]
    min_tokens: Annotated[int | None, Option(INT32, "The fewest tokens a caption may have.")]
    include_prompt: Annotated[bool | None, Option(BOOL, "Whether the caption shows the prompt.")]
    num_captions: Annotated[int | None, Option(INT32, "How many captions to return, best first.")]
    repetition_penalty: Annotated[float | None, Option(FP32, "Above 1, words come less often again.")]
    no_repeat_ngram_size: Annotated[int | None, Option(INT32, "No run of so many tokens comes twice.")]
    num_beams: Annotated[int | None, Option(INT32, "Beams to search with.")]
    length_penalty: Annotated[float | None, Option(FP32, "Beam search: above 0 favours long captions.")]
    early_stopping: Annotated[bool | None, Option(BOOL, "Beam search: stop at num_beams captions.")]
    do_sample: Annotated[bool | None, Option(BOOL, "Draw tokens instead of taking the likeliest.")]
    temperature: Annotated[float | None, Option(FP32, "Sampling: below 1 sharpens, above 1 flattens.")]
    top_k: Annotated[int | None, Option(INT32, "Sampling: from the k likeliest tokens only.")]
    top_p: Annotated[float | None, Option(FP32, "Sampling: from the likeliest tokens of so much probability.")]
    seed: Annotated[int | None, Option(INT64, "Sampling: same seed, same captions.")]
    resize_mode: Annotated[str | None, Option(BYTES, "stretch, center_crop or letterbox.")]


OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Options, include_extras=True).items()
}


def image_tensor(encoded: bytes) -> npt.NDArray[Any]:
    """The `image` input: [1, 1] of encoded bytes."""
    return np.array([[encoded]], dtype=np.object_)


def option_tensors(options: Options) -> Tensors:
    """An input [1, 1] for each option that is not None.

    Raises InvalidRequest for a value of the wrong kind, TypeError for an option that does not exist.
    """
    tensors: Tensors = {}
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"There is no option {quoted(name)}; the options are {', '.join(OPTIONS)}")
        if value is not None:
            tensors[name] = _option_tensor(name, value, OPTIONS[name].kind)
    return tensors


def _option_tensor(name: str, value: object, kind: Kind) -> npt.NDArray[Any]:
    got = quoted(value)  # before it becomes what Python has for it: 0.01 in FP32 is 0.009999999776482582
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is not kind.python and not (kind.python is float and type(value) is int):
        raise InvalidRequest(f"{name} must be {kind.python.__name__}, got {got}")
    if isinstance(value, int | float) and kind.python in LIMITS:
        limits = LIMITS[kind.python](kind.dtype)
        if not limits.min <= value <= limits.max:
            raise InvalidRequest(f"{name} must be between {limits.min} and {limits.max}, got {got}")
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError as exc:
            raise InvalidRequest(f"{name} must be text that UTF-8 can hold: {exc}") from exc
    return np.array([[value]], dtype=kind.dtype)


def parse_caption(tensors: Tensors) -> Caption:
    """The best of the model's K captions, with the others as its alternatives.

    From `caption` BYTES, `score` FP32 and `num_tokens` INT32, each [1, K], and `token_scores` FP32 [1, K, T], each
    row of which is padded. Raises ServerError where one is missing or empty.
    """
    try:
        reason = tensors["finish_reason"].item().decode() if "finish_reason" in tensors else None
        best, *others = zip(
            tensors["caption"][0],
            tensors["score"][0].tolist(),
            tensors["num_tokens"][0].tolist(),
            tensors["token_scores"][0].tolist(),
            strict=True,
        )
        alternatives = tuple(_caption(*other) for other in others)
        return _caption(*best, alternatives, reason)
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        raise ServerError(
            "Expected caption, score and num_tokens of shape [1, K] and token_scores of shape [1, K, T], "
            f"got {excerpt(shapes)}: is it a captioning model?"
        ) from exc


def _caption(
    text: bytes,
    score: float,
    num_tokens: int,
    token_scores: list[float],
    alternatives: tuple[Caption, ...] = (),
    finish_reason: str | None = None,
) -> Caption:
    return Caption(text.decode(), score, num_tokens, tuple(token_scores[:num_tokens]), alternatives, finish_reason)
