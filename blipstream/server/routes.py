# SPDX-License-Identifier: Apache-2.0
"""The two routes on which captions come out of a server, and the models that each passes."""

from collections import Counter
from collections.abc import Mapping

CAPTION, STREAM = ROUTES = "caption", "caption_stream"
EXPLAIN = "explain"  # a caption, too, from the same models
STAGES = ("preprocess", "encoder")  # before both decoders, in this order
DECODERS = {CAPTION: "decoder", STREAM: STREAM}  # by route; each is a process of its own


def captions_by_route(inferences: Mapping[str, int]) -> dict[str, int]:
    """Captions that came out on each route, given the inferences of each model.

    `caption`, `caption_pixels` and `explain` belong to the route CAPTION. A route whose models are not there is left
    out.
    """
    captions: Counter[str] = Counter()
    for model, count in inferences.items():
        if model.startswith((CAPTION, EXPLAIN)):
            captions[STREAM if model == STREAM else CAPTION] += count
    return dict(captions)
