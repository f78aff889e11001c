# SPDX-License-Identifier: Apache-2.0
"""The options of an explanation, beside those of the caption.

The server declares them in blipstream/options.py, and `make configs` copies them here.
"""

from typing import Annotated, get_type_hints

from blipstream_client._captions import Caption
from blipstream_client._matches import text_tensors
from blipstream_client._options import BYTES, INT32, OPTIONS, Option, Options, option_tensor, option_tensors
from blipstream_client._rerank_options import check_no_rerank
from blipstream_client._tensors import Tensors

GIVEN_CAPTION = "given_caption"  # the model's input for a caption that it is not to generate


class ExplainOptions(Options, total=False):
    """Options of an explanation, and of its caption. One that is absent or None has the server's default."""

    # explain options: `make configs` writes these lines
    # fmt: off
    caption_index: Annotated[int | None, Option(
        INT32, 0, "Which of num_captions captions to explain. 0: the best.",
        low=0, high=9,
    )]
    layer: Annotated[int | None, Option(
        INT32, -1, "The layer of the text decoder, from 0 on. -1: the mean of all.",
        low=-1,
    )]
    head: Annotated[int | None, Option(
        INT32, -1, "The attention head, from 0 on. -1: the mean of all.",
        low=-1,
    )]
    method: Annotated[str | None, Option(
        BYTES, "attention", "What heatmaps are made of: attention, rollout or gradient.",
    )]
    # fmt: on
    # end of explain options


ALL_OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(ExplainOptions, include_extras=True).items()
}
EXPLAIN_OPTIONS = {name: option for name, option in ALL_OPTIONS.items() if name not in OPTIONS}


def explain_tensors(options: ExplainOptions, caption: str | Caption | None) -> Tensors:
    """An input tensor [1, 1] for each option that is not None, and for a caption that is given.

    Raises InvalidRequest for a value of the wrong type, TypeError for an option that does not exist.
    """
    check_no_rerank(options)
    tensors = option_tensors(options, ALL_OPTIONS, ("caption", "timeout"))
    if caption is not None:
        text = caption.text if isinstance(caption, Caption) else caption
        tensors[GIVEN_CAPTION] = option_tensor("caption", text, BYTES)
    return tensors


def explain_match_tensors(text: str, layer: int | None, head: int | None, resize_mode: str | None) -> Tensors:
    """The inputs of the model `explain_match`, without the image. Raises InvalidRequest."""
    options: ExplainOptions = {"layer": layer, "head": head, "resize_mode": resize_mode}
    return text_tensors([text], None) | option_tensors(options, ALL_OPTIONS)
