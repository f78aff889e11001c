# SPDX-License-Identifier: Apache-2.0
"""What a request asks of preprocess."""

from collections.abc import Mapping
from typing import Any

from blipstream.config import TextConfig
from blipstream.deadline import Deadline
from blipstream.images.loader import ImageRequest
from blipstream.options import EXPLAIN_NAMES, OPTION_NAMES, RERANK_OPTIONS, OptionDefaults, RequestOptions


def load_request(
    arrays: Mapping[str, Any],
    deadline: Deadline,
    text: TextConfig,
    defaults: OptionDefaults | None = None,
) -> ImageRequest:
    """What to load, from arrays [B, 1] of `image` and `resize_mode`, or from a copy of `pixels` [B, H, W, 3].

    Raises InvalidInput if a decoder of that shape would refuse the request's options: it would do so only after all
    the work.
    """
    images, modes = (list(arrays[name].flat) if name in arrays else [] for name in ("image", "resize_mode"))
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
    return request
