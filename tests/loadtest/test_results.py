# SPDX-License-Identifier: Apache-2.0
"""The figures of a load test, from made-up records."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blipstream.command_line import CALLED_AS
from blipstream_loadtest.report import text
from blipstream_loadtest.results import LoadTest, RecordError, Slo

ORIGIN = 1_700_000_000.0
COLUMNS = ("due", "late_ms", "latency_ms", "protocol", "kind", "size", "error", "message")


def record(folder: Path, requests: list[tuple[float, float, str]], shape: str = "steps", **slo: float) -> LoadTest:
    """The results of two stages of ten seconds with these requests, each (due in s, latency in ms, error)."""
    with (folder / "requests.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for due, latency, error in requests:
            writer.writerow([ORIGIN + due, 0.0, latency, "grpc", "greedy", "original", error, error and "it was full"])
    (folder / "stages.csv").write_text(
        f"name,users,started\n1 user,1,{ORIGIN}\n2 users,2,{ORIGIN + 10}\nend,0,{ORIGIN + 20}\n"
    )
    readings = [reading(ORIGIN - 1, 5), reading(ORIGIN + 30, 5 + len(requests))]
    (folder / "server.jsonl").write_text("".join(json.dumps(each) + "\n" for each in readings))
    limits = {"p95_ms": None, "error_rate": None, "min_rps": None, **slo}
    (folder / "run.json").write_text(json.dumps({"shape": shape, "slo": limits}))
    return LoadTest(folder)


def reading(when: float, count: int) -> dict[str, Any]:
    """A reading of the server after `count` batches of one, each 3 ms in the queue and 5 ms in compute."""
    model = {
        "success": count,
        "fail": 0,
        "success_ns": count * 9_000_000,
        "queue": count,
        "queue_ns": count * 3_000_000,
        "compute": count,
        "compute_ns": count * 5_000_000,
        "batches": {"1": count},
    }
    return {"time": when, "models": {"encoder": model}}


def test_figures(tmp_path: Path) -> None:
    latencies = [float(value) for value in range(10, 110)]
    test = record(tmp_path, [(value / 10, latency, "") for value, latency in enumerate(latencies)])
    first, second = test.stages
    assert (first.requests, second.requests) == (100, 0)
    assert first.p95_ms == pytest.approx(np.percentile(latencies, 95))
    assert first.rps == pytest.approx(9.9)  # the last answer came in the second stage
    assert second.rps == pytest.approx(0.1)
    assert np.isnan(second.p95_ms)
    assert second.error_rate == 1
    (encoder,) = test.models
    assert (encoder.requests, encoder.queue_ms, encoder.compute_ms, encoder.total_ms) == (100, 3, 5, 9)
    assert encoder.batches == {1: 100}
    assert encoder.mean_batch == 1
    json.dumps(test.summary(), allow_nan=False)


def test_errors_do_not_flatter_latencies(tmp_path: Path) -> None:
    requests = [(1.0, 1000.0, ""), (2.0, 1.0, "ServerOverloaded"), (3.0, 1.0, "ServerOverloaded")]
    test = record(tmp_path, requests, p95_ms=500)
    assert test.overall.p50_ms == 1000
    assert test.overall.error_rate == pytest.approx(2 / 3)
    assert test.overall.rps == pytest.approx(1 / 20)
    assert test.errors == [("ServerOverloaded", "grpc greedy", 2, "it was full")]


def test_steps_pass_if_one_step_does(tmp_path: Path) -> None:
    fast = [(i / 10, 50.0, "") for i in range(99)]
    slow = [(10 + i / 20, 5000.0, "") for i in range(99)]
    test = record(tmp_path, fast + slow, p95_ms=100, min_rps=9, error_rate=0.01)
    assert test.verdict.passed
    assert test.verdict.text == "9.90 requests a second within the SLO, with 1 user"
    assert not record(tmp_path, fast + slow, p95_ms=100, min_rps=11).verdict.passed
    other = record(tmp_path, fast + slow, "steady", p95_ms=100)
    assert not other.verdict.passed
    assert other.verdict.text == "p95 5000 ms is above 100 ms"


def test_slo_on_nothing(tmp_path: Path) -> None:
    test = record(tmp_path, [(1.0, 1.0, "ServerUnreachable")], "steady", p95_ms=100, error_rate=0.5, min_rps=1)
    assert len(test.slo.misses(test.overall)) == 3
    assert Slo().misses(test.overall) == []


@pytest.mark.parametrize("missing", ["requests.csv", "stages.csv", "server.jsonl", "run.json"])
def test_incomplete(missing: str, tmp_path: Path) -> None:
    record(tmp_path, [(1.0, 1.0, "")])
    (tmp_path / missing).unlink()
    with pytest.raises(RecordError, match="holds no complete load test: run it again"):
        LoadTest(tmp_path)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"run it again \(it has no run\.json\)$"):
        LoadTest(tmp_path)


def test_ended_early(tmp_path: Path) -> None:
    record(tmp_path, [(1.0, 1.0, "")])
    (tmp_path / "stages.csv").write_text(f"name,users,started\n1 user,1,{ORIGIN}\n")
    with pytest.raises(RecordError, match="it ended before its first stage did"):
        LoadTest(tmp_path)


def search(folder: Path, *steps: tuple[str, int, float, float], demand: float | None = None, **slo: float) -> LoadTest:
    """The results of a search in steps of ten seconds, each (name, users, answers a second, latency in ms)."""
    requests, stages = [], []
    for number, (name, users, rps, latency) in enumerate(steps):
        began = ORIGIN + 10 * number
        stages.append(f"{name},{users},{began}")
        count = round(rps * 10)
        apart = (9.99 - latency / 1000) / max(count, 1)  # so that all are answered in time
        requests += [f"{began + i * apart},0,{latency},grpc,greedy,640,,," for i in range(count)]
    (folder / "requests.csv").write_text("\n".join([",".join(COLUMNS) + ",texts_ms", *requests]) + "\n")
    (folder / "stages.csv").write_text("\n".join(["name,users,started", *stages, f"end,0,{ORIGIN + 10 * len(steps)}"]))
    (folder / "server.jsonl").write_text(json.dumps(reading(ORIGIN, 0)) + "\n")
    limits = {"p95_ms": None, "error_rate": 0.01, "min_rps": None, **slo}
    asked = {"images_per_day": demand, "peak_factor": 2.5} if demand else None
    (folder / "run.json").write_text(json.dumps({"shape": "steps", "slo": limits, "demand": asked}))
    return LoadTest(folder)


FOUND = (("1 user", 1, 20.0, 50.0), ("2 users", 2, 40.0, 50.0), ("4 users", 4, 50.0, 80.0), ("3 users", 3, 45.0, 67.0))


def test_a_search_that_broke_the_slo(tmp_path: Path) -> None:
    test = search(tmp_path, *FOUND, ("pause", 0, 0.0, 0.0), ("at 70%", 3, 30.0, 60.0), p95_ms=70)
    assert [stage.users for stage in test.searched] == [1, 2, 3, 4]
    assert test.verdict.passed
    assert test.verdict.text == "45.00 requests a second within the SLO, with 3 users"
    assert test.findings == [
        "The limit was found: with 4 users, p95 80 ms is above 70 ms.",
        "At 30.0 a second, sent at random times as people do: p95 60 ms.",
    ]
    assert test.plan == []


def test_a_search_that_reached_no_limit(tmp_path: Path) -> None:
    test = search(tmp_path, *FOUND[:2], p95_ms=70)
    assert test.findings == ["The limit was not reached with 2 users: search on with a higher --users."]


def test_a_search_until_throughput_grew_no_more(tmp_path: Path) -> None:
    test = search(
        tmp_path, *FOUND[:3], ("8 users", 8, 50.1, 160.0), ("16 users", 16, 50.2, 320.0), ("32 users", 32, 50.0, 640.0)
    )
    assert test.findings == ["The limit was found: with more than 16 users, requests only wait longer."]


def test_a_minimum_rate_is_no_limit(tmp_path: Path) -> None:
    """The first steps miss it because they ask for less."""
    test = search(tmp_path, *FOUND[:2], p95_ms=70, min_rps=30)
    assert test.verdict.text == "40.00 requests a second within the SLO, with 2 users"
    assert test.findings == ["The limit was not reached with 2 users: search on with a higher --users."]


def test_machines_for_a_demand(tmp_path: Path) -> None:
    test = search(tmp_path, *FOUND, ("at 70%", 3, 30.0, 60.0), p95_ms=70, demand=5e6)
    assert test.plan == [
        "5,000,000 images a day are 57.9 a second on average and 144.7 at the peak, 2.5 times that.",
        "Machines: 5, each at 70% of the 45.0 a second measured here; one more if one may fail.",
    ]


def test_the_slo_is_missed_if_the_load_to_plan_with_misses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = search(tmp_path, *FOUND, ("at 70%", 3, 30.0, 90.0), p95_ms=70, demand=5e6)
    assert not missed.verdict.passed
    assert "SLO missed: 3 users kept to it, but requests at random times did not," in text(missed, tmp_path)
    assert missed.findings[1] == "At 30.0 a second, sent at random times as people do: p95 90 ms is above 70 ms."
    assert missed.plan[1:] == [
        "Machines: unknown, since the load to plan with missed the SLO. Measure again on a quiet machine, or with a "
        "lower load (--users)."
    ]
    monkeypatch.setenv(CALLED_AS, "make")
    assert LoadTest(tmp_path).plan[-1].endswith("with a lower load (USERS=).")
    kept = search(tmp_path, *FOUND, ("at 70%", 3, 30.0, 60.0), p95_ms=70, min_rps=40)
    assert kept.verdict.passed  # less load has fewer answers


def silenced(folder: Path, *rows: str) -> LoadTest:
    """The results of a search that ended in its second stage because the server stopped answering."""
    search(folder, *FOUND[:1], p95_ms=70, demand=5e6)
    (folder / "stages.csv").write_text(
        f"name,users,started\n1 user,1,{ORIGIN}\n2 users,2,{ORIGIN + 10}\nsilence,0,{ORIGIN + 18}\n"
    )
    with (folder / "requests.csv").open("a") as file:
        file.write("".join(f"{row}\n" for row in rows))
    return LoadTest(folder)


def test_a_server_that_stopped_answering_gives_no_result(tmp_path: Path) -> None:
    answered = [f"{ORIGIN + 11},0,1000,grpc,greedy,640,ServerOverloaded,it was full,"]
    lost = [f"{ORIGIN + 12 + i},0,10,grpc,greedy,640,ServerUnreachable,refused {i}," for i in range(6)]
    test = silenced(tmp_path, *answered, *lost)
    assert not test.summary()["passed"]
    said = text(test, tmp_path)
    assert "No result: the server stopped answering after 12 s (refused 0)\n" in said
    assert "Machines: unknown, since the server stopped answering." in said
    assert "limit" not in said
    assert "nan" not in said + json.dumps(test.summary())


def test_a_server_may_stop_without_a_word(tmp_path: Path) -> None:
    assert silenced(tmp_path).stopped == "the server stopped answering after 10 s (no request was answered)"
    (tmp_path / "requests.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(RecordError, match=r"the server stopped answering after 0 s \(no request was answered\)"):
        LoadTest(tmp_path)


@pytest.mark.parametrize("bound", [{"p95_ms": 100}, {}])
@pytest.mark.parametrize("shape", ["steady", "steps"])
def test_no_percentile_of_nothing(shape: str, bound: dict[str, float], tmp_path: Path) -> None:
    test = record(tmp_path, [(1.0, 1.0, "ServerError")], shape, **bound)
    assert "nan" not in text(test, Path("/results"))
    assert "nan" not in json.dumps(test.summary())


def test_no_machines_without_a_figure(tmp_path: Path) -> None:
    test = search(tmp_path, *FOUND, p95_ms=10, demand=5e6)
    assert not test.verdict.passed
    assert test.plan[1] == "Machines: unknown, since no load met the SLO."
    assert test.findings == []


def test_a_load_that_is_no_search_may_not_be_the_most(tmp_path: Path) -> None:
    record(tmp_path, [(i / 10, 50.0, "") for i in range(199)], "steady")
    conditions = json.loads((tmp_path / "run.json").read_text())
    demand = {"images_per_day": 864000, "peak_factor": 2}
    (tmp_path / "run.json").write_text(json.dumps(conditions | {"demand": demand}))
    assert LoadTest(tmp_path).plan[1:] == [
        "Machines: 3, each at 70% of the 9.9 a second measured here; one more if one may fail.",
        "Nothing searched for the limit, so fewer may do: the shape steps finds it.",
    ]


def test_the_text_fits_a_terminal(tmp_path: Path) -> None:
    test = search(tmp_path, *FOUND, ("at 70%", 3, 30.0, 9876.0), p95_ms=70, demand=5e9)
    lines = text(test, Path("/results")).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "report: /results/index.html (open it in a browser)"
    assert lines[3].split() == ["4", "users", "500", "0", "50.00", "80", "80", "80"]
