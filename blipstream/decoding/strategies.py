# SPDX-License-Identifier: Apache-2.0
"""The three strategies, each for many requests at once, as pure functions of logits and state.

A strategy sees only numbers of a request's own slot, so no request depends on another.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import override  # in typing from Python 3.12 on

from blipstream.decoding.beams import Beams, beam_step
from blipstream.decoding.constraints import constrain
from blipstream.decoding.features import Features
from blipstream.decoding.history import History
from blipstream.decoding.request import Request
from blipstream.decoding.sampling import draw, filter_distribution, uniforms
from blipstream.decoding.slots import OptionColumns, SlotTensors

State = TypeVar("State", bound=SlotTensors)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a strategy chooses from, beside its own state."""

    logits: Tensor  # f32 [S, W, V]; a strategy may overwrite them
    history: History
    options: OptionColumns
    features: Features
    fixed_shapes: bool  # whether no shape may depend on the numbers in a tensor, as in a CUDA graph


class Choice(NamedTuple, Generic[State]):
    """What each row goes on with."""

    tokens: Tensor  # int64 [S, W]
    token_scores: Tensor  # f32 [S, W], their log-probabilities
    parents: Tensor | None  # int64 [S, W], the row that each continues; None: itself
    done: Tensor  # bool [S], whether a request has all its captions
    state: State


class StepReport(NamedTuple):
    """What the host reads after a step: the captions of each slot so far."""

    done: Tensor  # bool [S], as in Choice
    lengths: Tensor  # int64 [S, W], generated tokens
    scores: Tensor  # f64 [S, W], what captions are ranked by
    ids: Tensor  # int64 [S, W, H], prompt and caption
    token_scores: Tensor  # f32 [S, W, H], as in History


class Strategy(ABC, Generic[State]):
    """How tokens are chosen."""

    tokens_are_final = False  # whether a row's tokens stay as they were chosen

    def __init__(self, end_token_id: int) -> None:
        self.end_token_id = end_token_id

    @abstractmethod
    def new_state(self, requests: Sequence[Request], width: int, positions: int) -> State:
        """The state that each request begins with, on the CPU."""

    @abstractmethod
    def choose(self, inputs: Inputs, state: State) -> Choice[State]:
        """The next token of each row."""

    @abstractmethod
    def report(self, done: Tensor, history: History, state: State) -> StepReport:
        """The captions so far: views of the history and the state after a step."""

    def growing(self, state: State) -> Tensor | None:  # noqa: ARG002
        """The rows that a forward has to run over, bool [S, W]; None: all."""
        return None


@dataclass(eq=False)
class Rows(SlotTensors):
    """Rows that grow apart from each other, each until its caption ends."""

    growing: Tensor  # bool [S, W]
    lengths: Tensor  # int64 [S, W], generated tokens
    totals: Tensor  # f64 [S, W], their summed log-probabilities


@dataclass(eq=False)
class SampledRows(Rows):
    """Rows with what decides their draws."""

    uniforms: Tensor  # f32 [S, W, H], a random number in [0, 1) for each token


RowsT = TypeVar("RowsT", bound=Rows)


class _EachRow(Strategy[RowsT]):
    """Each row becomes a caption."""

    tokens_are_final = True

    @abstractmethod
    def draw(self, inputs: Inputs, state: RowsT) -> tuple[Tensor, Tensor]:
        """The next token of each row, from constrained logits, and its log-probability: int64 and f32 [S, W]."""

    @override
    def choose(self, inputs: Inputs, state: RowsT) -> Choice[RowsT]:
        constrain(inputs.logits, inputs.history, inputs.options, self.end_token_id, inputs.features)
        tokens, token_scores = self.draw(inputs, state)
        lengths = state.lengths + state.growing
        totals = state.totals + token_scores.masked_fill(~state.growing, 0)
        full = inputs.history.generated + 1 == inputs.options["max_tokens"]
        growing = state.growing & ~((tokens == self.end_token_id) | full[:, None])
        state = replace(state, growing=growing, lengths=lengths, totals=totals)
        return Choice(tokens, token_scores, None, ~growing.any(1), state)

    @override
    def report(self, done: Tensor, history: History, state: RowsT) -> StepReport:
        return StepReport(done, state.lengths, state.totals, history.ids, history.token_scores)

    @override
    def growing(self, state: RowsT) -> Tensor:
        return state.growing


class Greedy(_EachRow[Rows]):
    """The most probable token, each time."""

    @override
    def new_state(self, requests: Sequence[Request], width: int, positions: int) -> Rows:
        return _new_rows(len(requests), width)

    @override
    def draw(self, inputs: Inputs, state: Rows) -> tuple[Tensor, Tensor]:
        tokens = inputs.logits.argmax(-1)
        return tokens, inputs.logits.gather(2, tokens[:, :, None])[:, :, 0] - inputs.logits.logsumexp(-1)


class Sample(_EachRow[SampledRows]):
    """Tokens drawn from the filtered distribution."""

    @override
    def new_state(self, requests: Sequence[Request], width: int, positions: int) -> SampledRows:
        numbers = torch.zeros(len(requests), width, positions)
        for slot, request in enumerate(requests):
            numbers[slot, :, : request.options.max_tokens] = uniforms(request.options)
        rows = _new_rows(len(requests), width)
        return SampledRows(rows.growing, rows.lengths, rows.totals, numbers)

    @override
    def draw(self, inputs: Inputs, state: SampledRows) -> tuple[Tensor, Tensor]:
        shape = state.growing.shape

        def by_row(name: str) -> Tensor:
            return inputs.options[name][:, None].expand(shape)

        probabilities = filter_distribution(
            inputs.logits.flatten(0, 1),
            by_row("temperature").reshape(-1, 1),
            by_row("top_k").masked_fill(~state.growing, 0).reshape(-1, 1),  # rows that have ended need no filter
            by_row("top_p").masked_fill(~state.growing, 1).reshape(-1, 1),
            some=inputs.features.filters,
            fixed_shapes=inputs.fixed_shapes,
        )
        uniform = state.uniforms.gather(2, inputs.history.generated[:, None, None].expand(*shape, 1))
        tokens = draw(probabilities, uniform.view(-1))
        token_scores = probabilities.gather(1, tokens[:, None]).log()
        return tokens.view(shape), token_scores.view(shape)


def _new_rows(slots: int, width: int) -> Rows:
    lengths = torch.zeros(slots, width, dtype=torch.int64)
    return Rows(torch.ones(slots, width, dtype=torch.bool), lengths, torch.zeros(slots, width, dtype=torch.float64))


class BeamSearch(Strategy[Beams]):
    """Each row is a beam."""

    @override
    def new_state(self, requests: Sequence[Request], width: int, positions: int) -> Beams:
        return Beams.new(len(requests), width, positions)

    @override
    def choose(self, inputs: Inputs, state: Beams) -> Choice[Beams]:
        log_probs = inputs.logits.log_softmax(-1)
        constrain(log_probs, inputs.history, inputs.options, self.end_token_id, inputs.features)
        step = beam_step(
            log_probs, inputs.history, inputs.options, state, self.end_token_id, fixed_shapes=inputs.fixed_shapes
        )
        return Choice(step.tokens, step.token_scores, step.parents, step.done, step.beams)

    @override
    def report(self, done: Tensor, history: History, state: Beams) -> StepReport:
        return StepReport(done, state.lengths, state.scores, state.ids, state.token_scores)


STRATEGIES: dict[str, type[Strategy[Any]]] = {  # by options.strategy
    "greedy": Greedy,
    "sample": Sample,
    "beam": BeamSearch,
}
