# SPDX-License-Identifier: Apache-2.0
"""Refusals wait a moment, keep their order, and none is lost at the end."""

import time
from threading import Event

from blipstream.serving.refusals import DELAY_SECONDS, DelayedRefusals


def test_a_refusal_is_sent_after_the_delay() -> None:
    refusals, sent = DelayedRefusals(), Event()
    began = time.monotonic()
    refusals.put(sent.set)
    assert sent.wait(10)
    assert time.monotonic() - began >= DELAY_SECONDS
    refusals.close()


def test_what_waits_at_the_end_is_sent_in_its_order() -> None:
    refusals = DelayedRefusals()
    sent: list[int] = []
    for number in range(100):
        refusals.put(lambda number=number: sent.append(number))  # type: ignore[misc]
    refusals.close()
    assert sent == list(range(100))
