# SPDX-License-Identifier: Apache-2.0
"""The routes on which captions and matches come out of a server, and the models that each passes."""

from collections import Counter
from collections.abc import Mapping

CAPTION, STREAM, MATCH = ROUTES = "caption", "caption_stream", "match"  # a server need not have all of them
EXPLAIN = "explain"  # a caption, too, from the same models
EXPLAIN_MATCH = "explain_match"  # a match, too
RERANK = "rerank"  # a caption that has passed the models of matching, too
STAGES = ("preprocess", "encoder")  # before both decoders, in this order; matching may have another encoder
DECODERS = {CAPTION: "decoder", STREAM: STREAM, MATCH: "matcher"}  # by route; each is a process of its own


def captions_by_route(inferences: Mapping[str, int]) -> dict[str, int]:
    """Captions, or answers of matching, that came out on each route, given the inferences of each model.

    `caption`, `caption_pixels` and `explain` belong to the route CAPTION, `explain_match` to MATCH, and `rerank` to
    both. A route whose models are not there is left out.
    """
    captions: Counter[str] = Counter()
    for model, count in inferences.items():
        if model.startswith(CAPTION) or model in (EXPLAIN, RERANK):
            captions[STREAM if model == STREAM else CAPTION] += count
        if model in (MATCH, EXPLAIN_MATCH, RERANK):
            captions[MATCH] += count
    return dict(captions)
