# SPDX-License-Identifier: Apache-2.0
"""Strategies read their rows' logits and say what comes next; they know no model.

Each does what transformers' `generate` does, to the token: its logits processors in their order, its beam search
with its stopping rules. A strategy sees its own request's rows only, so no request depends on another.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blipstream.options import DecodingOptions

NEVER = -1.0e9  # the score of what must not win, as in transformers


@dataclass(frozen=True)
class Sequence:
    """A finished caption: the generated tokens, without the prompt, and their log-probabilities."""

    ids: list[int]
    token_scores: list[float]
    sequence_score: float  # what captions are ranked by: beam search divides the sum by length ** length_penalty


@dataclass
class Draft:
    """A caption in the making."""

    ids: list[int] = field(default_factory=list)
    token_scores: list[float] = field(default_factory=list)
    total: float = 0.0

    def append(self, token: int, score: float) -> None:
        """Add a token and its log-probability."""
        self.ids.append(token)
        self.token_scores.append(score)
        self.total += score

    def extended(self, token: int, score: float, total: float) -> "Draft":
        """Another one, a token longer, with a total of its own."""
        return Draft([*self.ids, token], [*self.token_scores, score], total)

    def finished(self, sequence_score: float | None = None) -> Sequence:
        """What it has come to."""
        return Sequence(self.ids, self.token_scores, self.total if sequence_score is None else sequence_score)


@dataclass(frozen=True)
class Step:
    """How the next forward goes on: for each row its token, and which row of this one it continues."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)


class Strategy(ABC):
    """Owned by one request. It starts with one row, the prompt, and may come to have up to `options.max_rows`."""

    def __init__(self, options: DecodingOptions, prompt_ids: list[int], end_token_id: int) -> None:
        self.draft: Draft | None = None  # the caption so far, where there is just one and nothing in it will change
        self.sequences: list[Sequence] = []  # best first; filled once `advance` has returned a step without rows
        self._options = options
        self._prompt_ids = prompt_ids
        self._end_token_id = end_token_id

    @abstractmethod
    def advance(self, logits: Tensor) -> Step:
        """From logits, f32 [rows, V], which it may overwrite, what each row goes on with."""

    def _constrain(self, scores: Tensor, draft: Draft) -> Tensor:
        """Apply the constraints to the scores, f32 [V], of what may follow `draft`, in place."""
        return constrain(scores, self._options, self._prompt_ids, draft.ids, self._end_token_id)

    def _is_complete(self, draft: Draft) -> bool:
        return draft.ids[-1] == self._end_token_id or len(draft.ids) == self._options.max_tokens


def strategy_for(options: DecodingOptions, prompt_ids: list[int], end_token_id: int) -> Strategy:
    """The strategy that the options ask for."""
    kinds: dict[str, type[Strategy]] = {"greedy": Greedy, "sample": Sample, "beam": BeamSearch}
    return kinds[options.strategy](options, prompt_ids, end_token_id)


class Greedy(Strategy):
    """The most probable token, each time."""

    def __init__(self, options: DecodingOptions, prompt_ids: list[int], end_token_id: int) -> None:
        super().__init__(options, prompt_ids, end_token_id)
        self.draft = self._caption = Draft()

    def advance(self, logits: Tensor) -> Step:
        """See Strategy."""
        scores = self._constrain(logits[0], self._caption)
        token = int(scores.argmax())
        self._caption.append(token, float(scores[token] - scores.logsumexp(0)))
        if self._is_complete(self._caption):
            self.sequences = [self._caption.finished()]
            return Step()
        return Step([token], [0])


class Sample(Strategy):
    """Tokens drawn from the filtered distribution, one row a caption; equal seeds give equal captions."""

    def __init__(self, options: DecodingOptions, prompt_ids: list[int], end_token_id: int) -> None:
        super().__init__(options, prompt_ids, end_token_id)
        self._filters = filters(options)
        self._uniforms = uniforms(options)
        self._drawn = 0  # tokens, for each caption
        self._drafts = dict(enumerate(Draft() for _ in range(options.num_captions)))  # of the rows still growing
        if options.num_captions == 1:
            self.draft = self._drafts[0]
        self._complete: list[Sequence] = []

    def advance(self, logits: Tensor) -> Step:
        """See Strategy."""
        # the first time there is one row, the prompt's, from which all captions start
        parents = range(len(logits)) if len(logits) == len(self._drafts) else [0] * len(self._drafts)
        scores = logits[list(parents)]
        for row, draft in zip(scores, self._drafts.values(), strict=True):
            self._constrain(row, draft)
        probabilities = filter_distribution(scores, *self._filters)
        drawn = draw(probabilities, self._uniforms[list(self._drafts), self._drawn])
        self._drawn += 1
        token_scores = probabilities.gather(1, drawn[:, None])[:, 0].log()
        step = Step()
        growing: dict[int, Draft] = {}
        for (index, draft), row, token, score in zip(
            self._drafts.items(), parents, drawn.tolist(), token_scores.tolist(), strict=True
        ):
            draft.append(token, score)
            if self._is_complete(draft):
                self._complete.append(draft.finished())
                continue
            growing[index] = draft
            step.tokens.append(token)
            step.parents.append(row)
        self._drafts = growing
        if not growing:
            self.sequences = sorted(self._complete, key=lambda sequence: -sequence.sequence_score)
        return step


class BeamSearch(Strategy):
    """transformers' beam search, `GenerationMixin._beam_search`, for one image."""

    def __init__(self, options: DecodingOptions, prompt_ids: list[int], end_token_id: int) -> None:
        super().__init__(options, prompt_ids, end_token_id)
        self._running = [Draft()]
        self._finished: list[Sequence] = []  # at most num_beams, best first

    def advance(self, logits: Tensor) -> Step:
        """See Strategy."""
        options, length = self._options, len(self._running[0].ids) + 1
        log_probs = logits.log_softmax(-1)
        for row, draft in enumerate(self._running):
            self._constrain(log_probs[row], draft)
        totals = torch.tensor([draft.total for draft in self._running])
        # twice as many as beams: even if every beam ends, enough are left to go on with
        candidates = (log_probs + totals[:, None]).flatten().topk(2 * options.num_beams)
        vocabulary = log_probs.shape[-1]
        step = Step()
        running: list[Draft] = []
        ended: list[tuple[float, Draft]] = []
        for rank, (total, index) in enumerate(zip(*(part.tolist() for part in candidates), strict=True)):
            row, token = divmod(index, vocabulary)
            draft = self._running[row].extended(token, float(log_probs[row, token]), total)
            if self._is_complete(draft):
                if rank < options.num_beams:  # the others are there to go on, not to win
                    ended.append((total / length**options.length_penalty, draft))
            elif len(running) < options.num_beams:
                running.append(draft)
                step.tokens.append(token)
                step.parents.append(row)
        self._finish(ended)
        if running and self._may_improve(running[0].total, length):
            self._running = running
            return step
        self.sequences = self._finished[: options.num_captions]
        return Step()

    def _finish(self, ended: list[tuple[float, Draft]]) -> None:
        if self._options.early_stopping and len(self._finished) == self._options.num_beams:
            return
        self._finished += [draft.finished(score) for score, draft in ended]
        self._finished.sort(key=lambda sequence: -sequence.sequence_score)
        del self._finished[self._options.num_beams :]

    def _may_improve(self, best_total: float, length: int) -> bool:
        """Whether a running beam could still win: a heuristic where long captions are favoured, as there."""
        if len(self._finished) < self._options.num_beams:
            return True
        if self._options.early_stopping:
            return False
        best_score: float = best_total / length**self._options.length_penalty
        return best_score > self._finished[-1].sequence_score


def constrain(
    scores: Tensor, options: DecodingOptions, prompt_ids: list[int], ids: list[int], end_token_id: int
) -> Tensor:
    """Apply the constraints that hold for every strategy to one row's scores, f32 [V], in place.

    transformers' RepetitionPenaltyLogitsProcessor, NoRepeatNGramLogitsProcessor and
    MinNewTokensLengthLogitsProcessor, in its order.
    """
    if options.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt_ids, *ids}))
        chosen = scores[seen]
        penalty = options.repetition_penalty
        scores[seen] = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
    if options.no_repeat_ngram_size and (banned := _repeating(prompt_ids + ids, options.no_repeat_ngram_size)):
        scores[banned] = -float("inf")
    if len(ids) < options.min_tokens:
        scores[end_token_id] = -float("inf")
    return scores


def _repeating(ids: list[int], size: int) -> list[int]:
    """The tokens that would complete a run of `size` tokens that is there already."""
    last = ids[len(ids) - size + 1 :]
    return [ids[i + size - 1] for i in range(len(ids) - size + 1) if ids[i : i + size - 1] == last]


def filters(options: DecodingOptions) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A request's temperature, top_k and top_p as `filter_distribution` takes them."""
    return (
        torch.tensor([[options.temperature]], dtype=torch.float64),
        torch.tensor([[options.top_k]]) if options.top_k else None,
        torch.tensor([[options.top_p]], dtype=torch.float64) if options.top_p < 1 else None,
    )


def filter_distribution(
    scores: Tensor, temperature: Tensor, top_k: Tensor | None = None, top_p: Tensor | None = None
) -> Tensor:
    """The distributions, f32 [R, V], that are drawn from: temperature, then the k likeliest, then the nucleus.

    The three are [R, 1] or [1, 1]; top_k 0 and top_p 1 filter nothing, and neither does None, which saves the sorting.
    transformers' TemperatureLogitsWarper, TopKLogitsWarper and TopPLogitsWarper, in its order; the nucleus is that
    of Holtzman et al., arXiv:1904.09751.
    """
    scores = scores / temperature.float()
    if top_k is None and top_p is None:
        return scores.softmax(-1)
    ascending, order = scores.sort(-1)
    if top_k is not None:
        last = scores.shape[-1] - 1
        threshold = ascending.gather(-1, (last + 1 - top_k).clamp(0, last).expand(len(scores), 1))
        ascending = ascending.masked_fill((ascending < threshold) & (top_k > 0), -float("inf"))
    if top_p is not None:
        outside = (ascending.softmax(-1).cumsum(-1) <= (1 - top_p).float()) & (top_p < 1)
        outside[:, -1] = False  # the likeliest token always stays
        ascending = ascending.masked_fill(outside, -float("inf"))
    return torch.empty_like(scores).scatter(-1, order, ascending).softmax(-1)


def uniforms(options: DecodingOptions) -> Tensor:
    """What settles a request's draws: numbers in [0, 1), f32 [num_captions, max_tokens], from its seed alone."""
    generator = torch.Generator().manual_seed(options.seed)
    # by token, then by caption: with fewer tokens, those that are left are the same
    return torch.rand(options.max_tokens, options.num_captions, generator=generator).T


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token a row, int64 [R], from probabilities, f32 [R, V], by inverting their sums at uniform, f32 [R]."""
    sums = probabilities.double().cumsum(-1)  # in f32 the tail of a large vocabulary would be lost
    drawn = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=sums.shape[-1] - 1)  # where the probabilities are no numbers
