# SPDX-License-Identifier: Apache-2.0
"""Shapes: how the load changes over time. A shape is a list of stages, each of some users for some seconds."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

STEPS = 5
END = "end"  # name of what comes after the last stage
SPIKE_FACTOR = 4  # the spike as a multiple of the usual load


class Stage(NamedTuple):
    """A number of users for a while."""

    name: str
    users: int
    seconds: float


def steady(users: int, seconds: float) -> list[Stage]:
    """The same load all the time."""
    return [Stage("steady", users, seconds)]


def steps(users: int, seconds: float) -> list[Stage]:
    """The load grows in equal steps, which shows how much is too much."""
    loads = sorted({max(1, round(users * step / STEPS)) for step in range(1, STEPS + 1)})
    return [Stage(f"{load} user" if load == 1 else f"{load} users", load, seconds / len(loads)) for load in loads]


def spike(users: int, seconds: float) -> list[Stage]:
    """A quarter of the load, then all of it for a fifth of the time, then a quarter: does the server recover?"""
    usual = max(1, users // SPIKE_FACTOR)
    return [
        Stage("before", usual, seconds * 0.3),
        Stage("spike", users, seconds * 0.2),
        Stage("after", usual, seconds * 0.5),
    ]


def soak(users: int, seconds: float) -> list[Stage]:
    """The same load for long, in quarters: does memory grow, do answers slow down?"""
    return [Stage(f"quarter {number}", users, seconds / 4) for number in range(1, 5)]


SHAPES: dict[str, Callable[[int, float], list[Stage]]] = {
    function.__name__: function for function in (steady, steps, spike, soak)
}
DEFAULT_SECONDS = {"steady": 60.0, "steps": 150.0, "spike": 120.0, "soak": 3600.0}


def stage_at(stages: Sequence[Stage], seconds: float) -> Stage | None:
    """The stage at a time since the start, or None after the last."""
    ends = accumulate(stage.seconds for stage in stages)
    return next((stage for stage, end in zip(stages, ends, strict=True) if seconds < end), None)
