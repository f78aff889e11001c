# SPDX-License-Identifier: Apache-2.0
"""Which texts belong to their images: `blipstream filter`, after CapFilt (Li et al. 2022, section 3.3).

A text whose match is too low is dropped, or replaced by a caption of the image whose match is not.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from blipstream_client._base import DEFAULT_MODEL
from blipstream_client._client import Client
from blipstream_client._exceptions import InvalidImage, InvalidRequest, ServerError
from blipstream_client._images import ImageLike
from blipstream_client._matches import MATCH, Match
from blipstream_client._options import OPTIONS, Options, option_tensors
from blipstream_client.bulk.rows import FLOAT, INT, TEXT, Row, as_utf8
from blipstream_client.bulk.summary import Summary
from blipstream_client.bulk.task import PLAIN, Task
from blipstream_client.bulk.transport import OtherServed, Served

MIN_MATCH = 0.5  # of CapFilt, unless the server's matching is calibrated
CAPFILT: Options = {  # how captions are drawn
    "do_sample": True,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "min_tokens": 10,
    "max_tokens": 30,
}
KEPT, REPLACED, DROPPED = VERDICTS = ("kept", "replaced", "dropped")
COLUMNS = {
    "name": TEXT,
    "text": TEXT,
    "match": FLOAT,  # of the text
    "verdict": TEXT,
    "caption": TEXT,  # the text, or what replaces it. None if the text was dropped
    "caption_match": FLOAT,
    "checkpoint": TEXT,
    "width": INT,  # pixels, as stored
    "height": INT,
    "hash": TEXT,  # SHA-256 of the image's bytes
    "error": TEXT,
}
BINS = 20  # of the histogram of matches
MOST_EXAMPLES = 8  # of each kind


@dataclass
class FilterSummary(Summary):
    """The verdicts, how the matches are spread, and examples for the report."""

    needs: ClassVar = ("name", "text", "match", "verdict", "caption", "caption_match", "error")

    verdicts: Counter[str] = field(default_factory=Counter)
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)  # of the matches of texts, from 0 to 1
    examples: dict[str, list[tuple[float, int, Row]]] = field(default_factory=lambda: {each: [] for each in VERDICTS})

    @property
    def outcome(self) -> str:
        """How many texts got which verdict."""
        return ", ".join(f"{self.verdicts[verdict]:,} {verdict}" for verdict in VERDICTS if self.verdicts[verdict])

    def count(self, row: Row) -> None:
        """Count one row, and keep it as an example if few are nearer to the threshold."""
        super().count(row)
        if (verdict := row["verdict"]) is None:
            return
        self.verdicts[verdict] += 1
        self.histogram[min(int(row["match"] * BINS), BINS - 1)] += 1
        nearness = row["match"] if verdict == DROPPED else -row["caption_match"]
        example = nearness, -self.rows, row
        heap = self.examples[verdict]
        (heapq.heappush if len(heap) < MOST_EXAMPLES else heapq.heappushpop)(heap, example)


class FilterTask(Task[FilterSummary]):
    """A verdict on each text of each image. `min_match` None is the server's threshold, if it has one."""

    verb = "filter"
    summary = FilterSummary
    result = "a verdict"
    columns = COLUMNS
    is_matching = True

    def __init__(
        self,
        min_match: float | None = None,
        *,
        replacing: Options | None = None,
        truncate: bool | None = None,
        resize_mode: str | None = None,
    ) -> None:
        """`replacing`: the options of captions that replace texts, over those of CapFilt. None: texts are dropped."""
        if min_match is not None and not 0 <= min_match <= 1:
            raise InvalidRequest(f"min_match must be between 0 and 1, got {min_match}")
        option_tensors({**(replacing or {}), "resize_mode": resize_mode})  # raises InvalidRequest for a bad value
        self._truncate = truncate
        self._resize_mode = resize_mode
        self._replacing = None if replacing is None else _over_capfilt(replacing)
        self.generation = self._replacing or {}
        self.models = (MATCH,) if replacing is None else (MATCH, DEFAULT_MODEL)
        self.options: dict[str, Any] = {
            "min_match": min_match,
            "truncate": truncate,
            "resize_mode": resize_mode,
            "replacing": self._replacing,
        }

    @property
    def min_match(self) -> float:
        """The match that a text must have, once `check` knows it."""
        return float(self.options["min_match"])

    def check(self, client: Client, served: Served) -> None:
        """Take the server's threshold, and ask about a plain image. Raises InvalidRequest."""
        if self.options["min_match"] is None:
            self.options["min_match"] = served.calibration.threshold if served.calibration else MIN_MATCH
        with suppress(InvalidImage, ServerError, OtherServed):  # the images meet them, and have their own answer
            self._matches(client, PLAIN, ["a picture"])
            if self._replacing is not None:
                client.caption(PLAIN, **self._replacing)

    def ask(self, client: Client, image: ImageLike, texts: Sequence[str]) -> Sequence[Row]:
        """The verdict on each text."""
        if not texts:
            raise InvalidRequest("There is no text with the image")
        rows = [self._judged(*pair) for pair in zip(texts, self._each_match(client, image, texts), strict=True)]
        dropped = [row for row in rows if row.get("verdict") == DROPPED]
        if dropped and self._replacing is not None:
            kept = {row["text"] for row in rows if row.get("verdict") == KEPT}
            candidates = self._candidates(client, image, self._replacing, len(dropped), kept)
            for row, found in zip(dropped, candidates, strict=False):
                row |= {"verdict": REPLACED, "caption": found.text, "caption_match": found.match}
        return rows

    def unanswered(self, texts: Sequence[str]) -> Sequence[Row]:
        """The texts alone."""
        return [{"text": text} for text in texts] or [{}]

    def _judged(self, text: str, match: float | InvalidRequest) -> dict[str, Any]:
        if isinstance(match, InvalidRequest):
            return {"text": text, "error": as_utf8(str(match))}
        judged = {"text": text, "match": match, "verdict": DROPPED}
        return judged | ({"verdict": KEPT, "caption": text, "caption_match": match} if self._passes(match) else {})

    def _passes(self, match: float) -> bool:
        return match >= self.min_match

    def _each_match(self, client: Client, image: ImageLike, texts: Sequence[str]) -> list[float | InvalidRequest]:
        """The match of each text, or why it has none: the server refuses a request for a single bad text."""
        try:
            return [found.match for found in self._matches(client, image, texts)]
        except InvalidImage:
            raise
        except InvalidRequest as exc:
            return [exc] if len(texts) == 1 else [self._each_match(client, image, [text])[0] for text in texts]

    def _matches(self, client: Client, image: ImageLike, texts: Sequence[str]) -> Sequence[Match]:
        return client.match(image, texts, truncate=self._truncate, resize_mode=self._resize_mode)

    def _candidates(
        self, client: Client, image: ImageLike, options: Options, count: int, known: set[str]
    ) -> Iterator[Match]:
        """Captions that pass, the best first, none of them known. As many as wanted are drawn, if they are drawn."""
        most = int(OPTIONS["num_captions"].high)
        if options.get("do_sample"):
            options = {**options, "num_captions": min(most, max(count, options.get("num_captions") or 1))}
        best = client.caption(image, **options)
        texts = {each.text: None for each in (best, *best.alternatives) if each.text not in {*known, ""}}
        matches = self._matches(client, image, [*texts]) if texts else []
        return (each for each in sorted(matches, key=lambda each: -each.match) if self._passes(each.match))


def _over_capfilt(options: Options) -> Options:
    given: Any = {name: value for name, value in options.items() if value is not None}
    merged: Options = {**CAPFILT, **given}
    if not merged["do_sample"] and "top_p" not in given:
        del merged["top_p"]  # it has no meaning then, and the server refuses it
    return merged
