# SPDX-License-Identifier: Apache-2.0
"""The record of a request, from its arrival to its captions."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from blipstream.errors import BlipstreamError
from blipstream.heatmaps import Explanation
from blipstream.options import DecodingOptions, ExplainOptions
from blipstream.text.adapter import Adapter
from blipstream.text.tokenizer import Tokenizer

ADDED_WORDS = 1024  # logits have room for a multiple of so many words behind the checkpoint's vocabulary
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenSequence:
    """The tokens of one caption, without the prompt."""

    ids: list[int]
    token_scores: list[float]  # their log-probabilities
    score: float  # ranks captions: the sum of token_scores; beam search divides it by length ** length_penalty


@dataclass(frozen=True)
class Caption:
    """One caption of a finished request, as users get it."""

    text: str
    score: float  # as in TokenSequence
    num_tokens: int  # generated, the end token included
    token_scores: list[float]  # the log-probability of each of them


@dataclass(frozen=True)
class TextDelta:
    """What is new in a request since the last delta."""

    text: str  # the texts of all deltas, joined, are the caption
    token_scores: tuple[float, ...]  # log-probabilities of the new tokens
    finish_reason: FinishReason | None = None  # with the last delta of a request that has its captions or was cancelled
    error: BlipstreamError | None = None  # with the last delta of a request that has none

    @property
    def is_last(self) -> bool:
        """Whether no other delta follows."""
        return bool(self.finish_reason or self.error)


def _ignore(_: TextDelta) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(eq=False)
class Request:
    """One image to caption, and all that is known of it."""

    image_embeds: Tensor  # [N, E]
    options: DecodingOptions
    prompt_ids: list[int]
    id: str = ""  # the client's name for it
    trace_context: str = ""  # JSON of the W3C trace headers, if it is traced
    given_ids: list[int] | None = None  # a finished caption, with its end token; None: generate it
    explain: ExplainOptions | None = None  # None: it wants no explanation
    adapter: Adapter | None = None  # which it keeps, even if another one gets its name
    rows_before: int = 0  # rows of the images that come before it in the same call
    arrived: int = field(default_factory=time.time_ns)  # nanoseconds since 1970
    admitted: int = 0  # when it got rows, in the same unit; 0: not yet

    # written by the engine
    tokenizer: Tokenizer = field(init=False)  # the checkpoint's, or its adapter's
    adapter_place: int = 0  # in the decoder's stack of adapters, while it runs
    draft: TokenSequence | None = None  # the caption so far, if it has only one and its tokens are final
    sequences: list[TokenSequence] = field(default_factory=list)  # the finished captions, best first
    _written: tuple[list[TokenSequence], list[Caption]] = ([], [])  # sequences, and the captions made of them
    explanation: Explanation | None = None  # if it wants one

    # written by the scheduler
    listener: Callable[[TextDelta], None] = _ignore
    is_cancelled: Callable[[], bool] = _never
    streams: bool = False  # whether the listener wants each token at once
    turn: int = 0  # its place in the queue: see RequestQueue
    sent_text: str = ""
    sent_ids: list[int] = field(default_factory=list)
    has_ended: bool = False  # the last delta was sent
    has_gone: bool = False  # nobody listens any more

    def text(self, ids: list[int]) -> str:
        """The caption of generated `ids`, with the prompt if it is wanted."""
        return self.tokenizer.decode(self.prompt_ids + ids if self.options.include_prompt else ids)

    @property
    def captions(self) -> list[Caption]:
        """The finished captions as text, best first. They are made by the first who asks: no step waits for that."""
        if self._written[0] is not self.sequences:
            captions = [
                Caption(self.text(each.ids), each.score, len(each.ids), each.token_scores) for each in self.sequences
            ]
            self._written = self.sequences, captions
        return self._written[1]

    @property
    def added_words(self) -> int:
        """How many words its adapter may add to the vocabulary: a multiple, so that few sizes come up."""
        words = self.adapter.config.num_words if self.adapter else 0
        return -(-words // ADDED_WORDS) * ADDED_WORDS

    @property
    def max_rows(self) -> int:
        """The most rows that it can have."""
        return self.options.max_rows

    @property
    def max_length(self) -> int:
        """The most positions that each of its rows can fill."""
        return self.options.max_length(len(self.prompt_ids))

    @property
    def caption_length(self) -> int:
        """The most tokens that its caption can have with its prompt, or those of a given one, without the end."""
        return self.max_length if self.given_ids is None else len(self.given_ids) - 1
