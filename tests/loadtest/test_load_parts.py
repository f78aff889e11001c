# SPDX-License-Identifier: Apache-2.0
"""The parts of a load test, without running one."""

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mix
from load_results import LoadTest, RecordError, Slo
from shapes import SHAPES, stage_at
from tests.conftest import ROOT

ORIGIN = 1_700_000_000.0
COLUMNS = ("due", "late_ms", "latency_ms", "protocol", "kind", "size", "error", "message")


def test_default_mix_draws_by_weight() -> None:
    chosen = mix.load(ROOT / "loadtest/mix.yaml")
    rng = random.Random(0)
    drawn = [chosen.draw(rng) for _ in range(2000)]
    kinds = Counter(request.kind for request in drawn)
    assert set(kinds) == {"greedy", "prompt", "beams", "sampling"}
    assert kinds["greedy"] / len(drawn) == pytest.approx(0.6, abs=0.05)
    assert {request.options["prompt"] for request in drawn if request.kind == "prompt"} == {
        "a picture of",
        "two",
        "a photograph of a",
    }
    for request in drawn[:20]:
        with Image.open(io.BytesIO(request.image)) as image:
            assert max(image.size) == (384 if request.size == "original" else int(request.size))


def test_one_of_each_covers_everything() -> None:
    chosen = mix.load(ROOT / "loadtest/mix.yaml")
    requests = list(chosen.one_of_each())
    assert {request.kind for request in requests} == set(chosen.kinds)
    assert {request.size for request in requests} == set(chosen.sizes)


IMAGES = f"images: {{folder: {ROOT}/build/demo/samples, sizes: {{original: 1}}}}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as YAML"),
        ("[]", "the file must be a mapping, got []"),
        ("pictures: {}", "the file has pictures; known are images, requests"),
        (IMAGES, "requests must be a mapping, got None"),
        (f"{IMAGES}\nrequests: {{greedy: {{weight: -1}}}}", "the weight of greedy in requests must be a number of at"),
        (f"{IMAGES}\nrequests: {{greedy: {{weight: 0}}}}", "requests needs at least one weight above 0"),
        (f"{IMAGES}\nrequests: {{a: {{options: {{beams: 3}}}}}}", "requests.a.options has beams; known are"),
        (f"{IMAGES}\nrequests: {{a: {{options: {{prompt: []}}}}}}", "needs at least one value to choose from"),
        (f"{IMAGES}\nrequests: {{a: {{stream: 1}}}}", "requests.a.stream must be true or false, got 1"),
        ("images: {folder: ., sizes: {original: 1}}\nrequests: {a: {weight: 1}}", "has no images"),
        (
            IMAGES.replace("original", "huge") + "\nrequests: {a: {weight: 1}}",
            "must be 'original' or pixels such as 640, got 'huge'",
        ),
    ],
)
def test_mix_mistakes(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(text)
    with pytest.raises(mix.MixError) as caught:
        mix.load(file)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("users", [1, 3, 40])
def test_shapes(shape: str, users: int) -> None:
    stages = SHAPES[shape](users, 100.0)
    assert sum(stage.seconds for stage in stages) == pytest.approx(100.0)
    assert max(stage.users for stage in stages) == users
    assert min(stage.users for stage in stages) >= 1
    assert stage_at(stages, 0.0) == stages[0]
    assert stage_at(stages, 99.9) == stages[-1]
    assert stage_at(stages, 100.1) is None


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


def test_ended_early(tmp_path: Path) -> None:
    record(tmp_path, [(1.0, 1.0, "")])
    (tmp_path / "stages.csv").write_text(f"name,users,started\n1 user,1,{ORIGIN}\n")
    with pytest.raises(RecordError, match="it ended before its first stage did"):
        LoadTest(tmp_path)
