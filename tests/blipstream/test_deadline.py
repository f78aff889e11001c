# SPDX-License-Identifier: Apache-2.0
"""A deadline passes, or its client goes away."""

import threading
import time

import pytest

from blipstream.deadline import Deadline
from blipstream.errors import Gone, TimedOut


def test_deadline() -> None:
    gone = threading.Event()
    assert Deadline(0, gone.is_set).left() == 0
    assert 0 < Deadline(60_000_000, gone.is_set).left() <= 60_000_000
    assert Deadline(2**64 - 1, gone.is_set).left() < 2**64  # Triton reads a timeout of -1 as this
    short = Deadline(1, gone.is_set)
    time.sleep(0.001)
    with pytest.raises(TimedOut, match="Request timeout expired"):
        short.left()
    assert isinstance(short.why_over(), TimedOut)
    assert Deadline(0, gone.is_set).why_over() is None
    gone.set()
    for deadline in (short, Deadline(0, gone.is_set)):
        with pytest.raises(Gone, match="the client has gone"):
            deadline.left()
        assert isinstance(deadline.why_over(), Gone)
