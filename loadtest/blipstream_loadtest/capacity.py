# SPDX-License-Identifier: Apache-2.0
"""The search for the most users whose load keeps to the SLO: double them until it breaks, then halve the gap."""

from collections.abc import Sequence
from typing import NamedTuple

MOST_USERS = 1024  # at which the search ends unless told otherwise
MIN_GAIN = 1.05  # ratio of throughputs; less is noise
FLAT_STEPS = 2  # doublings in a row without a gain, after which more users only wait longer
PRECISION = 0.1  # gap between what keeps to the SLO and what breaks it, as a share of the former


class Step(NamedTuple):
    """What was measured with so many users."""

    users: int
    rps: float  # answers a second
    overloaded: bool  # latency or errors break the SLO


def breaking(steps: Sequence[Step]) -> int | None:
    """The fewest users that break the SLO, or None if none do."""
    return min((step.users for step in steps if step.overloaded), default=None)


def is_flat(steps: Sequence[Step]) -> bool:
    """Whether throughput has stopped growing, so that more users only wait longer."""
    rates = [rps for _, rps, _ in sorted(steps)]
    return len(rates) > FLAT_STEPS and max(rates[-FLAT_STEPS:]) < MIN_GAIN * max(rates[:-FLAT_STEPS])


def next_users(steps: Sequence[Step], first: int, most: int) -> int | None:
    """How many users to try after these steps, or None if the search is over."""
    if not steps:
        return first
    above = breaking(steps)
    if above is not None:
        below = max((step.users for step in steps if step.users < above), default=0)
        return (below + above) // 2 if above - below > max(1, PRECISION * below) else None
    tried = max(step.users for step in steps)
    return None if tried >= most or is_flat(steps) else min(2 * tried, most)
