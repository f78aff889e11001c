# SPDX-License-Identifier: Apache-2.0
"""Shapes, and the search for the most load, against a simulated server."""

from collections.abc import Callable

import pytest

from blipstream_loadtest.capacity import MOST_USERS, Step, is_flat
from blipstream_loadtest.shapes import FIXED, PAUSE, PLANNED, Load, Stage, most_users, stages

SERVICE_SECONDS = 0.05  # of one request alone
CAPACITY = 80.0  # requests a second
Server = Callable[[Stage], Step]


def closed(p95_ms: float | None) -> Server:
    """A server that answers at most CAPACITY requests a second; users who wait ask it no more than that."""

    def measure(stage: Stage) -> Step:
        rps = min(stage.users / SERVICE_SECONDS, CAPACITY)
        return Step(stage.users, rps, p95_ms is not None and stage.users > p95_ms / 1000 * rps)

    return measure


def opened(stage: Stage) -> Step:
    """The same server, asked at a rate: above CAPACITY its queue grows."""
    return Step(stage.users, min(stage.rate, CAPACITY), stage.rate > CAPACITY)


def run(load: Load, server: Server) -> list[Stage]:
    """The stages of a load on a simulated server."""
    given = stages(load)
    done = [next(given)]
    try:
        while True:
            done.append(given.send(server(done[-1])))
    except StopIteration:
        return done


def users(stages: list[Stage]) -> list[int]:
    return [stage.users for stage in stages if not stage.name.startswith(("pause", "at "))]


@pytest.mark.parametrize("shape", FIXED)
@pytest.mark.parametrize("most", [1, 3, 40])
def test_fixed_shapes(shape: str, most: int) -> None:
    done = run(Load(shape, most, 100.0), closed(None))
    assert sum(stage.seconds for stage in done) == pytest.approx(100.0)
    assert max(stage.users for stage in done) == most
    assert min(stage.users for stage in done) >= 1
    assert {stage.rate for stage in done} == {0}


@pytest.mark.parametrize("shape", FIXED)
def test_each_user_of_a_fixed_shape_has_the_same_rate(shape: str) -> None:
    done = run(Load(shape, 8, 100.0, rate=40.0), opened)
    assert {stage.rate / stage.users for stage in done} == {5.0}


def test_steps_double_until_the_slo_breaks_and_then_halve_the_gap() -> None:
    """CAPACITY is used up by 4 users; with 16, requests take 200 ms."""
    assert users(run(Load("steps", None, 20), closed(p95_ms=170))) == [1, 2, 4, 8, 16, 12, 14, 13]
    assert users(run(Load("steps", None, 20), closed(p95_ms=60))) == [1, 2, 4, 8, 6, 5]


def test_the_gap_is_a_tenth_at_last() -> None:
    done = run(Load("steps", None, 20), lambda stage: Step(stage.users, stage.users, stage.users > 701))
    tried = [each for each in users(done) if each <= 1024]
    below, above = max(each for each in tried if each <= 701), min(each for each in tried if each > 701)
    assert above - below <= 0.1 * below
    assert len(tried) <= 15


def test_steps_end_where_more_users_only_wait() -> None:
    assert users(run(Load("steps", None, 20), closed(p95_ms=None))) == [1, 2, 4, 8, 16]
    assert is_flat([Step(1, 10, False), Step(2, 10.3, False), Step(4, 10.4, False)])
    assert not is_flat([Step(1, 10, False), Step(2, 10.3, False), Step(4, 10.6, False)])


def test_users_bound_the_steps() -> None:
    assert users(run(Load("steps", 3, 20), closed(p95_ms=None))) == [1, 2, 3]
    assert users(run(Load("steps", 1, 20), closed(p95_ms=None))) == [1]
    endless = run(Load("steps", None, 20), lambda stage: Step(stage.users, stage.users, False))
    assert max(users(endless)) == MOST_USERS


def test_one_user_may_be_too_much() -> None:
    assert run(Load("steps", None, 20), closed(p95_ms=10)) == [Stage("1 user", 1, 20)]


def test_the_best_is_tried_with_random_arrivals_at_the_load_to_plan_with() -> None:
    *_, pause, last = run(Load("steps", None, 20), closed(p95_ms=170))
    assert (pause.name, pause.users) == (PAUSE, 0)
    assert (last.name, last.seconds) == (PLANNED, 20)
    assert last.rate == pytest.approx(0.7 * CAPACITY)
    assert last.users == 4  # the fewest that have the best throughput


def test_open_loop_steps_search_the_rate() -> None:
    done = run(Load("steps", None, 20, rate=160.0), opened)
    assert [stage.name for stage in done[:4]] == ["20/s", "40/s", "80/s", "160/s"]
    assert max(stage.rate for stage in done if stage.rate <= CAPACITY) == CAPACITY
    assert min(stage.rate for stage in done if stage.rate > CAPACITY) <= 1.1 * CAPACITY


def test_an_open_loop_search_goes_below_its_first_step() -> None:
    done = run(Load("steps", None, 20, rate=1600.0), opened)
    assert done[0].rate == 200
    assert max(stage.rate for stage in done if stage.rate <= CAPACITY) >= 70


def test_most_users() -> None:
    assert most_users(Load("steady", None, 60)) == 8
    assert most_users(Load("steps", None, 20)) == MOST_USERS
    assert most_users(Load("steps", 5, 20)) == 5
