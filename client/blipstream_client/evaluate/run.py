# SPDX-License-Identifier: Apache-2.0
"""A whole evaluation, but for what is printed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from blipstream_client._exceptions import InvalidRequest
from blipstream_client.bulk.extras import pyarrow
from blipstream_client.bulk.rows import as_utf8
from blipstream_client.evaluate.annotations import Annotated
from blipstream_client.evaluate.captions import Captioned, Index, joined
from blipstream_client.evaluate.java import check_installed, java
from blipstream_client.evaluate.metrics import check_spice, diversity
from blipstream_client.evaluate.scores import Scores, score
from blipstream_client.evaluate.tokens import PTB

NO_REFERENCE, NO_CAPTION = "have no reference", "have no caption"  # why images are left out


class Row(NamedTuple):
    """An image with a caption."""

    image: str
    caption: str
    match: float | None
    references: Sequence[str] = ()
    domain: str = ""


@dataclass
class Gathered:
    """What there is to score, and what cannot be."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: {NO_REFERENCE: [], NO_CAPTION: []})
    others: list[int | str] = field(default_factory=list)  # images that have a caption, and are not annotated

    @property
    def total(self) -> int:
        """How many images should be scored."""
        return len(self.rows) + sum(map(len, self.left_out.values()))


def check_tools(tokenization: str, *, has_references: bool, with_spice: bool) -> None:
    """Raise InvalidRequest if something that the metrics need is not installed."""
    pyarrow("Evaluating")
    if has_references or tokenization == PTB:
        check_installed()
    if tokenization == PTB:
        java()
    if with_spice:
        check_spice()


def gather(annotated: Sequence[Annotated] | None, captions: Iterable[Captioned]) -> Gathered:
    """The captions with their references, in the order of the annotations. Raises InvalidRequest if there is none."""
    found = Gathered()
    if annotated is None:
        for each in captions:
            name = as_utf8(str(each.image))
            if each.caption is None:
                found.left_out[NO_CAPTION].append(name)
            else:
                found.rows.append(Row(name, each.caption, each.match))
    else:
        by_image, found.others = joined(captions, Index(annotated))
        for image in annotated:
            captioned = by_image.get(image.image)
            if not image.references:
                found.left_out[NO_REFERENCE].append(image.image)
            elif captioned is None or captioned.caption is None:
                found.left_out[NO_CAPTION].append(image.image)
            else:
                row = Row(image.image, captioned.caption, captioned.match, image.references, image.domain)
                found.rows.append(row)
    if not found.rows:
        why = " and ".join(f"{len(names):,} {why}" for why, names in found.left_out.items() if names)
        raise InvalidRequest(f"There is no image to score: {why or 'there are no captions'}")
    return found


def scored(rows: Sequence[Row], tokenization: str, *, with_spice: bool) -> tuple[Scores, Mapping[str, float]]:
    """The scores of the rows, and their figures. Raises BlipstreamError if Java fails."""
    images, captions, matches, references, _ = zip(*rows, strict=True)
    scores, tokens = score(images, captions, references, tokenization, matches=matches, with_spice=with_spice)
    return scores, scores.figures() | diversity(tokens)
