# SPDX-License-Identifier: Apache-2.0
"""The options with which matching chooses among captions, beside those of a caption.

The server declares them in blipstream/options.py, and `make configs` copies them here.
"""

from collections.abc import Iterable
from typing import Annotated, get_type_hints

from blipstream_client._options import FP32, INT32, OPTIONS, Option, Options


class RerankOptions(Options, total=False):
    """Options of a caption, and of the choice among several. One that is absent or None has the server's default."""

    # rerank options: `make configs` writes these lines
    # fmt: off
    rerank: Annotated[int | None, Option(
        INT32, "num_captions", "Captions to generate, of which matching chooses. Without do_sample, at most num_beams.",
        low=1, high=10,
    )]
    min_match: Annotated[float | None, Option(
        FP32, 0.0, "Drop captions that match the image with a lower probability.",
        low=0, high=1,
    )]
    # fmt: on
    # end of rerank options


ALL_OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(RerankOptions, include_extras=True).items()
}
RERANK_OPTIONS = {name: option for name, option in ALL_OPTIONS.items() if name not in OPTIONS}


def check_no_rerank(options: Iterable[str]) -> None:
    """Raise TypeError if one of these options is for matching."""
    if given := [name for name in options if name in RERANK_OPTIONS]:
        raise TypeError(f"There is no option {given[0]!r} here: only caption and caption_many take it")
