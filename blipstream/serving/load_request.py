# SPDX-License-Identifier: Apache-2.0
"""What a request asks of preprocess."""

from collections.abc import Callable, Container, Mapping
from typing import Any

from blipstream.config import TextConfig
from blipstream.deadline import Deadline
from blipstream.images.loader import ImageRequest
from blipstream.options import (
    EXPLAIN_MATCH_NAMES,
    EXPLAIN_NAMES,
    EXPLAINED_TEXT,
    INPUT_NAMES,
    MATCH_NAMES,
    OPTION_NAMES,
    RERANK_OPTIONS,
    OptionDefaults,
    RequestOptions,
)

MATCH_IMAGE = "match_image"  # what the models of matching call `image`: so errors name the inputs that they have


def asked_inputs(given: Container[str]) -> tuple[str, ...]:
    """The inputs of the model that was asked for, by those that preprocess is given."""
    if MATCH_IMAGE not in given:
        return INPUT_NAMES
    if EXPLAINED_TEXT in given:
        return EXPLAIN_MATCH_NAMES
    return MATCH_NAMES if "text" in given else ("image", "resize_mode")


def load_request(
    arrays: Mapping[str, Any],
    deadline: Deadline,
    text: TextConfig,
    defaults: OptionDefaults | None = None,
    check_adapter: Callable[[str], object] | None = None,
) -> ImageRequest:
    """What to load, from arrays [B, 1] of an image and `resize_mode`, or from a copy of `pixels` [B, H, W, 3].

    Raises InvalidInput if a decoder of that shape would refuse the request's options: it would do so only after all
    the work. So does `check_adapter`, given the name of one that it would refuse.
    """
    images = [image for name in ("image", MATCH_IMAGE) if name in arrays for image in arrays[name].flat]
    modes = list(arrays["resize_mode"].flat) if "resize_mode" in arrays else []
    defaults = defaults or OptionDefaults()
    modes = [mode.decode(errors="replace") for mode in modes]
    for mode in modes:
        defaults.check_fixed("resize_mode", mode)
    if defaults.resize_mode:
        modes = modes or [defaults.resize_mode] * len(images)
    pixels = arrays["pixels"].copy() if "pixels" in arrays else None
    request = ImageRequest(images, modes, pixels, deadline)
    if not arrays.keys().isdisjoint((*OPTION_NAMES, *EXPLAIN_NAMES, *RERANK_OPTIONS)):
        options = RequestOptions.from_rows(arrays, request.num_images, text.max_positions, defaults)
        options.check_fits(text.num_layers, text.num_heads)
        if check_adapter:
            for adapter in {each.adapter for each in options.decoding} - {""}:
                check_adapter(adapter)
    return request
