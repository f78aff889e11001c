# SPDX-License-Identifier: Apache-2.0
"""Captions of a server, in a file that `blipstream bulk` would write, and goes on with."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blipstream_client._exceptions import InvalidRequest, ModelNotReady
from blipstream_client._options import Options
from blipstream_client._rerank_options import RERANK_OPTIONS, RerankOptions
from blipstream_client._text import excerpt, quoted
from blipstream_client.bulk import job
from blipstream_client.bulk.caption import CaptionSummary, CaptionTask
from blipstream_client.bulk.sources import Sources
from blipstream_client.evaluate.annotations import Annotated

# Of the authors' evaluation on COCO. Their min_length 5 and max_length 20 count the start token and the prompt's three
# words, too, of which the captions that are scored have none.
PAPER: Options = {
    "prompt": "a picture of ",
    "include_prompt": False,
    "num_beams": 3,
    "min_tokens": 1,
    "max_tokens": 16,
}


def over_paper(given: Mapping[str, Any]) -> RerankOptions:
    """The options of captions: those given, over the paper's, of which an adapter keeps the beams alone."""
    chosen: Any = {name: value for name, value in given.items() if value is not None}
    paper: Any = {"num_beams": PAPER["num_beams"]} if chosen.get("adapter") else {**PAPER}
    if chosen.get("do_sample"):
        del paper["num_beams"]
    paper |= chosen
    merged: RerankOptions = paper
    return merged


@dataclass
class AnnotatedImages(Sources):
    """The files of annotated images. There are too many for the job file, so it has what names them."""

    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, Any]:
        """What the user has named."""
        return {**self.described}


def sources_of(folder: str, annotated: Sequence[Annotated], described: Mapping[str, Any]) -> AnnotatedImages:
    """The files of those images that are in the folder. Raises InvalidRequest if none of them is."""
    paths = [*filter(None, (_path(folder, each.image) for each in annotated))]
    if not paths:
        raise InvalidRequest(
            f"None of the {len(annotated):,} images is in {excerpt(folder)}, such as {quoted(annotated[0].image)}:"
            " name the folder that they are in"
        )
    return AnnotatedImages(paths, described=described)


def _path(folder: str, image: str) -> str | None:
    """The image's file. Annotations have val2014/a.jpg, and people name the folder of a.jpg. None if it is missing."""
    paths = (os.path.join(folder, name) for name in (image, image.rpartition("/")[2]))  # noqa: PTH118
    return next(filter(os.path.isfile, paths), None)


def caption(
    sources: Sources,
    output: str,
    model: str,
    options: RerankOptions,
    *,
    with_match: bool,
    connection: dict[str, Any],
    max_in_flight: int,
) -> CaptionSummary:
    """Write the captions of all images to the output. Raises BlipstreamError.

    `with_match` asks how well they match their images, if the server can tell.
    """

    def run(asked: RerankOptions) -> CaptionSummary:
        task = CaptionTask(model, asked)
        return job.run(task, sources, output, connection=connection, max_in_flight=max_in_flight)

    if with_match and not RERANK_OPTIONS.keys() & options.keys():
        try:
            return run({**options, "rerank": 1})
        except ModelNotReady:  # it has no matching
            pass
    return run(options)
