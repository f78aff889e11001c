# SPDX-License-Identifier: Apache-2.0
"""What is shown while a command works."""

import io
import sys
import time
from pathlib import Path

import pytest

from blipstream_loadtest import progress
from blipstream_loadtest.progress import Progress
from blipstream_loadtest.run import Live
from blipstream_loadtest.shapes import Load

NOW = 1_700_000_100.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_renews_itself_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    shown = Progress()
    shown.show("one")
    shown.show("x" * 200)
    shown.clear()
    assert terminal.getvalue().split(progress.CLEAR) == ["", "one", "x" * 79, ""]


def test_elsewhere_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = Progress()
    for _ in range(12):
        shown.show(f"{now:.0f}")
        now += 1
    shown.clear()
    shown.show("at once")
    assert capsys.readouterr().err.splitlines() == ["1000", "1005", "1010", "at once"]


def test_waiting_says_so_until_the_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    said = ""
    with Progress().waiting("starting a server") as change:
        while "starting a server ... 0 s\n" not in said:
            said += capsys.readouterr().err
        change("asking it")
        while "asking it ... 0 s\n" not in said:
            said += capsys.readouterr().err
    assert said.startswith("starting a server ...\n")


def write_files(folder: Path, stages: str, rows: list[str]) -> None:
    (folder / "stages.csv").write_text("name,users,started\n" + stages)
    header = "due,late_ms,latency_ms,protocol,kind,size,error,message,texts_ms\n"
    (folder / "requests.csv").write_text(header + "".join(f"{row}\n" for row in rows))


def test_live_figures_are_of_the_last_seconds(tmp_path: Path) -> None:
    rows = [f"{NOW - 20 + i / 10},0,50,grpc,greedy,640,,," for i in range(196)]
    rows += [f"{NOW - 12},0,1,grpc,greedy,640,ServerOverloaded,full,"]
    write_files(tmp_path, f"steady,8,{NOW - 20}\n", rows)
    line = Live(tmp_path, Load("steady", 8, 60)).line(NOW)
    assert " ".join(line.split()) == "20 s 8 users 9.2/s p95 50 ms 1 failed 40 s left"


def test_live_figures_grow_with_the_files(tmp_path: Path) -> None:
    live = Live(tmp_path, Load("steps", None, 20))
    assert live.line(NOW) == "starting Locust ..."
    write_files(tmp_path, f"1 user,1,{NOW - 30}\n2 users,2,{NOW - 5}\n", [])
    assert live.line(NOW).endswith("no answers     0 failed  15 s left of this step")
    with (tmp_path / "requests.csv").open("a") as file:
        file.write(f"{NOW - 2},0,1000,grpc,greedy,640,,,\n{NOW - 1},0,1")  # the second is not written yet
    assert "p95  1,000 ms" in live.line(NOW)
    with (tmp_path / "requests.csv").open("a") as file:
        file.write("00,grpc,greedy,640,Timeout,late,\n")
    assert " 1 failed" in live.line(NOW)


def test_live_lines_fit(tmp_path: Path) -> None:
    write_files(tmp_path, f"1024 users,1024,{NOW - 9000}\n", [f"{NOW - 99},0,98765,http,greedy,640,,,"] * 20000)
    assert len(Live(tmp_path, Load("steps", None, 9999)).line(NOW)) < 80
    write_files(tmp_path, f"1 user,1,{NOW - 90}\nend,0,{NOW - 7}\n", [])
    assert Live(tmp_path, Load("steps", None, 10)).line(NOW).endswith("last answers")


def test_overdue_counts_from_the_last_stages_end(tmp_path: Path) -> None:
    live = Live(tmp_path, Load("steady", 8, 60))
    assert live.overdue(NOW) == 0
    write_files(tmp_path, f"steady,8,{NOW - 100}\nend,0,{NOW - 40}\n", [])
    assert live.overdue(NOW) == pytest.approx(40)
