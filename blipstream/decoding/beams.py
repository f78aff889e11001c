# SPDX-License-Identifier: Apache-2.0
"""Beam search, token for token that of transformers (`GenerationMixin._beam_search`)."""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from blipstream.decoding.constraints import INFINITY
from blipstream.decoding.history import History
from blipstream.decoding.slots import OptionColumns, SlotTensors

NEVER = -1.0e9  # the score of a beam that must not win, as in transformers


@dataclass(eq=False)
class Beams(SlotTensors):
    """What beam search keeps: the running beams' totals, and the best captions that are complete, best first."""

    totals: Tensor  # f32 [S, W], summed log-probabilities of the running beams
    scores: Tensor  # f64 [S, W], length-normalised, of the complete captions; -infinity: none yet
    lengths: Tensor  # int64 [S, W], their generated tokens
    ids: Tensor  # int64 [S, W, H], as in History
    token_scores: Tensor  # f32 [S, W, H]

    @classmethod
    def new(cls, slots: int, width: int, positions: int) -> Self:
        """All beams are the prompt, so only the first counts."""
        totals = torch.full((slots, width), NEVER)
        totals[:, 0] = 0
        ids = torch.zeros(slots, width, positions, dtype=torch.int64)
        scores = torch.full((slots, width), -INFINITY, dtype=torch.float64)
        return cls(totals, scores, torch.zeros(slots, width, dtype=torch.int64), ids, torch.zeros(ids.shape))


class BeamStep(NamedTuple):
    """How the running beams go on. All [S, W] but `done`."""

    parents: Tensor  # int64, the row that each continues
    tokens: Tensor  # int64, what it appends
    token_scores: Tensor  # f32
    done: Tensor  # bool [S], whether no running beam can win any more
    beams: Beams


def beam_step(
    log_probs: Tensor,
    history: History,
    options: OptionColumns,
    beams: Beams,
    end_token_id: int,
    *,
    fixed_shapes: bool,
) -> BeamStep:
    """One step of beam search, from constrained log-probabilities, f32 [S, W, V].

    Without `fixed_shapes`, a step in which no caption is complete is made shorter.
    """
    width, vocabulary = log_probs.shape[1:]
    # twice as many as beams: even if every beam ends, enough are left to go on with
    totals, index = (log_probs + beams.totals[:, :, None]).flatten(1).topk(2 * width)
    parents, tokens = index // vocabulary, index % vocabulary
    token_scores = log_probs.flatten(1).gather(1, index)
    generated = history.generated + 1
    full = generated == options["max_tokens"]
    complete = (tokens == end_token_id) | full[:, None]
    norm = generated.double() ** options["length_penalty"]
    early = options["early_stopping"] > 0

    if not fixed_shapes and not bool(complete.any()):
        parents, tokens, token_scores = parents[:, :width], tokens[:, :width], token_scores[:, :width]
        beams = replace(beams, totals=totals[:, :width])
    else:
        # the candidates behind the first W are there to go on, not to win
        closed = early & (beams.scores[:, -1] > -INFINITY)
        scores = torch.where(complete & ~closed[:, None], totals / norm[:, None], -INFINITY)[:, :width]
        beams = _merged(beams, history, scores, parents[:, :width], tokens[:, :width], token_scores[:, :width])
        running = complete.sort(dim=1, stable=True).indices[:, :width]  # the first that are not complete
        parents, tokens, token_scores = (each.gather(1, running) for each in (parents, tokens, token_scores))
        beams.totals = totals.gather(1, running)
    enough = beams.scores[:, -1] > -INFINITY
    hopeless = early | (beams.totals[:, 0] / norm <= beams.scores[:, -1])  # a heuristic if long captions are favoured
    return BeamStep(parents, tokens, token_scores, full | (enough & hopeless), beams)


def _merged(
    beams: Beams, history: History, scores: Tensor, parents: Tensor, tokens: Tensor, token_scores: Tensor
) -> Beams:
    """The best W of the complete captions and as many candidates, all [S, W]; a score of -infinity cannot win."""
    width, positions = history.ids.shape[1:]
    places = torch.cat([beams.scores, scores], 1).sort(dim=1, descending=True, stable=True)
    order = places.indices[:, :width]

    def merged(old: Tensor, rows: Tensor, last: Tensor) -> Tensor:
        grown = rows.gather(1, parents[:, :, None].expand(-1, -1, positions))
        grown.scatter_(2, history.lengths[:, None, None].expand(-1, width, 1), last[:, :, None])
        return torch.cat([old, grown], 1).gather(1, order[:, :, None].expand(-1, -1, positions))

    lengths = (history.generated + 1)[:, None].expand(-1, width)
    return Beams(
        beams.totals,
        places.values[:, :width],
        torch.cat([beams.lengths, lengths], 1).gather(1, order),
        merged(beams.ids, history.ids, tokens),
        merged(beams.token_scores, history.token_scores, token_scores),
    )
