# SPDX-License-Identifier: Apache-2.0
import threading

from blipstream_client._files import MAX_BYTES
from blipstream_client.bulk.limit import FIRST_LIMIT, Limit


def test_it_doubles_until_the_first_refusal() -> None:
    limit = Limit(100)
    limits = []
    for _ in range(4):
        for _ in range(limit.current):
            limit.accepted()
        limits.append(limit.current)
    assert limits == [2 * FIRST_LIMIT, 4 * FIRST_LIMIT, 8 * FIRST_LIMIT, 100]


def test_then_it_grows_by_one_for_each_round() -> None:
    limit = Limit(100)
    for _ in range(FIRST_LIMIT):
        limit.accepted()
    limit.refused()
    assert limit.current == FIRST_LIMIT
    limits = []
    for _ in range(4):
        for _ in range(limit.current + 1):
            limit.accepted()
        limits.append(limit.current)
    assert limits == [FIRST_LIMIT + 1, FIRST_LIMIT + 2, FIRST_LIMIT + 3, FIRST_LIMIT + 4]


def test_it_has_an_upper_and_a_lower_bound() -> None:
    limit = Limit(10)
    for _ in range(1000):
        limit.accepted()
    assert limit.current == 10
    for _ in range(1000):
        limit.refused()
    assert limit.current == 1
    assert Limit(3).current == 3


def test_refusals_of_one_round_count_once() -> None:
    limit = Limit(64)
    for _ in range(5000):
        limit.accepted()
    for _ in range(64):
        limit.acquire()
    for _ in range(60):
        limit.refused()
    assert limit.current == 32
    for _ in range(60):
        limit.refused()
    assert limit.current == 16


def test_acquire_keeps_the_limit() -> None:
    limit = Limit(2)
    limit.acquire()
    limit.acquire()
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (limit.acquire(), entered.set()))  # type: ignore[func-returns-value]
    thread.start()
    assert not entered.wait(0.1)
    limit.release()
    assert entered.wait(10)
    thread.join()


def test_large_images_lower_the_limit() -> None:
    """However many requests the server accepts."""
    limit = Limit(64)
    for _ in range(8):
        limit.acquire()
        limit.hold(MAX_BYTES)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (limit.acquire(), entered.set()))  # type: ignore[func-returns-value]
    thread.start()
    limit.accepted()
    assert not entered.wait(0.1)
    limit.release(MAX_BYTES)
    assert entered.wait(10)
    thread.join()
