# SPDX-License-Identifier: Apache-2.0
"""Shapes: how the load changes over time. A shape is made of stages, each of some users for some seconds."""

from collections.abc import Callable, Generator
from typing import NamedTuple

from blipstream_loadtest.capacity import MOST_USERS, Step, next_users

END = "end"  # name of what comes after the last stage
SILENCE = "silence"  # name of what comes instead if the server has stopped answering
PAUSE = "pause"  # name of a stage without users, in which those before it get their answers
PAUSE_SECONDS = 2.0
SPIKE_FACTOR = 4  # the spike as a multiple of the usual load
STEPS = "steps"
DEFAULT_USERS = 8
OPEN_LOOP_STEPS = 64  # an open-loop search changes the rate by this fraction of the highest, at least,
OPEN_LOOP_FIRST = 8  # and begins with this one
PLANNED_LOAD = 0.7  # of what was measured: random arrivals need room
PLANNED = f"at {PLANNED_LOAD:.0%}"  # name of the stage that tries it


class Stage(NamedTuple):
    """A number of users for a while."""

    name: str
    users: int
    seconds: float
    rate: float = 0.0  # requests a second of all these users, who wait for no answer; 0: each waits for its answers


class Load(NamedTuple):
    """The load that a load test puts on a server."""

    shape: str
    users: int | None  # the most at once; None: DEFAULT_USERS, or for STEPS as many as it takes
    seconds: float  # of STEPS, each step's; of any other shape, the whole time
    rate: float = 0.0  # requests a second of the most users, who wait for no answer; 0: each waits for its answers


Stages = Generator[Stage, Step, None]  # takes what was measured in a stage, and gives the next


def steady(users: int, seconds: float) -> list[Stage]:
    """The same load all the time."""
    return [Stage("steady", users, seconds)]


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


FIXED: dict[str, Callable[[int, float], list[Stage]]] = {
    function.__name__: function for function in (steady, spike, soak)
}
DEFAULT_SECONDS = {"steady": 60.0, STEPS: 20.0, "spike": 120.0, "soak": 3600.0}


def stages(load: Load) -> Stages:
    """The stages of a load, one after the other."""
    if load.shape == STEPS:
        yield from _steps(load)
        return
    users = load.users or DEFAULT_USERS
    for stage in FIXED[load.shape](users, load.seconds):
        yield stage._replace(rate=load.rate * stage.users / users)


def most_users(load: Load) -> int:
    """The most users that the load may have at once."""
    if load.users:
        return load.users
    if load.shape != STEPS:
        return DEFAULT_USERS
    return OPEN_LOOP_STEPS if load.rate else MOST_USERS


def _steps(load: Load) -> Stages:
    """More and more users until they break the SLO. Then, if they wait for answers, a try of the load to plan with.

    Users who wait for their answers ask less of a slow server, so their latencies say little of people who come
    whenever they like. So the last stage sends requests at random times, at PLANNED_LOAD of the best throughput.
    """
    most = most_users(load)
    first = max(1, most // OPEN_LOOP_FIRST) if load.rate else 1
    done: list[Step] = []
    while (users := next_users(done, first, most)) is not None:
        rate = load.rate * users / most
        name = f"{rate:.4g}/s" if rate else f"{users} user{'s' * (users > 1)}"
        done.append((yield Stage(name, users, load.seconds, rate)))
    best = max((step for step in done if not step.overloaded), key=lambda step: step.rps, default=None)
    if best and best.rps and not load.rate:
        yield Stage(PAUSE, 0, PAUSE_SECONDS)
        yield Stage(PLANNED, best.users, load.seconds, PLANNED_LOAD * best.rps)
