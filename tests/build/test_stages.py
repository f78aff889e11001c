# SPDX-License-Identifier: Apache-2.0
"""A stage says what it is, meanwhile for how long it has been going on, and at the end how long it took."""

import io
import re
import sys
import threading

import pytest

from blipstream import signals
from blipstream_build import stages
from blipstream_build.stages import stage


class Output(io.StringIO):
    """Standard output that notices when it has been told the time so often."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.told = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        written = super().write(text)
        if len(re.findall(r"\d s", self.getvalue())) >= 3:
            self.told.set()
        return written


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_stage(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    output = Output(terminal=terminal)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(stages, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(stages, "RENEW_SECONDS", 0.01)
    with stage("looking"):
        assert output.told.wait(60)
    between = r"(\rlooking \.\.\. \d+ s)+\rlooking \.\.\. " if terminal else r"(\d+ s \.\.\. )+"
    assert re.fullmatch(rf"looking \.\.\. {between}\d+\.\d s\n", output.getvalue())


def test_a_short_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("looking"):
        pass
    assert re.fullmatch(r"looking \.\.\. \d+\.\d s\n", capsys.readouterr().out)


@pytest.mark.parametrize(("error", "ending"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_stage_that_ends_early(capsys: pytest.CaptureFixture[str], error: type[BaseException], ending: str) -> None:
    with pytest.raises(error, match="why"), stage("looking"):
        raise error("why")
    assert capsys.readouterr().out == f"looking ... {ending}\n"


def test_an_interrupt_that_a_library_swallowed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.stopping, "is_set", lambda: True)
    with pytest.raises(RuntimeError), stage("looking"):
        raise RuntimeError
    assert capsys.readouterr().out == "looking ... interrupted\n"
