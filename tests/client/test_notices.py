# SPDX-License-Identifier: Apache-2.0
"""What a command says while it waits. Time passes when the test lets it."""

import pytest

from blipstream_client import _notices
from blipstream_client._notices import Waiting, say

URL = "grpc://user:secret@localhost:8001"


class Clock:
    """A timer that goes off when it is told to."""

    def __init__(self, seconds: float, function: object) -> None:
        assert seconds == _notices.PATIENCE_SECONDS
        self.go_off = function
        self.daemon = False
        timers.append(self)

    def start(self) -> None:
        pass

    def cancel(self) -> None:
        pass


timers: list[Clock] = []


@pytest.fixture(autouse=True)
def _timers(monkeypatch: pytest.MonkeyPatch) -> None:
    timers.clear()
    monkeypatch.setattr(_notices, "Timer", Clock)


def ring() -> None:
    timers[-1].go_off()  # type: ignore[operator]


def test_whom_why_how_long_and_how_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = Waiting(URL, 300)
    waiting.begin("No server answers")
    waiting.begin("Nobody is there")
    assert capsys.readouterr().err == ""
    ring()
    assert capsys.readouterr().err == "Nobody is there. Trying again for up to 300 s; Ctrl-C ends it.\n"
    waiting.begin("Nobody is there")
    waiting.end()
    waiting.end()
    assert capsys.readouterr().err == "The server answers.\n"
    waiting.begin("Gone again")
    ring()
    assert capsys.readouterr().err.startswith("Gone again. Trying again")
    assert len(timers) == 2


def test_a_short_wait_is_not_worth_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting(URL, 300) as waiting:
        waiting.begin("No server answers")
        waiting.end()
        ring()  # the timer went off while it was cancelled
        waiting.begin("No server answers")
    ring()
    assert capsys.readouterr().err == ""


def test_without_a_failure_only_a_terminal_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Waiting(URL, 60).until_first(iter([1, 2]))
    assert list(results) == [1, 2]
    assert timers == []
    monkeypatch.setattr(_notices, "on_terminal", lambda: True)
    waiting = Waiting(URL, 60)
    results = waiting.until_first(iter([1, 2]))
    waiting.begin()
    ring()
    assert list(results) == [1, 2]
    assert capsys.readouterr().err == "Waiting for grpc://localhost:8001 for up to 60 s; Ctrl-C ends it.\n"


def test_a_terminal_obeys_nothing_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    say("Cannot read \x1b]0;title\x07\x9b31m\u202e\udcff ä 日本: it is gone\nand so on")
    expected = "Cannot read \\x1b]0;title\\x07\\x9b31m\\u202e\\udcff ä 日本: it is gone\nand so on\n"
    assert capsys.readouterr().err == expected
