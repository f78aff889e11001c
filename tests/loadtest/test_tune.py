# SPDX-License-Identifier: Apache-2.0
"""`make tune` searches, serves the settings that it writes, and does not change the repository that it is given."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from PIL import Image

from blipstream_loadtest import mix
from blipstream_loadtest.options import MIX_FILE
from blipstream_tune.chart import chart
from blipstream_tune.search import is_gain, search
from blipstream_tune.settings import SPACE, Settings, read_config, read_settings, write_settings
from blipstream_tune.trials import Point, Trial, measure
from tests.conftest import ROOT
from tests.support.tiny_triton import Answer, Inputs, Refusal, tiny_triton

START: Settings = {name: values[0] for name, values in SPACE.items()}


def made_up(settings: Settings) -> Trial:
    """A trial with invented throughput, which is best with two decoders and a preferred batch of 8."""
    rps = 10.0 + 5 * (settings["decoder.instances"] == 2) + 3 * (settings["encoder.preferred_batch"] == 8)
    return Trial(settings, [Point(1, rps, 50.0, 0), Point(2, rps + 100, 500.0, 0)])


def score(trial: Trial) -> float:
    return trial.score(100)


def test_search_finds_what_is_best() -> None:
    trials = search(START, made_up, score, lambda: True)
    best = max(trials, key=score).settings
    assert best == {**START, "decoder.instances": 2, "encoder.preferred_batch": 8}
    assert len({json.dumps(trial.settings) for trial in trials}) == len(trials)


def test_search_keeps_to_its_budget() -> None:
    run = iter([True, True, False])
    trials = search(START, made_up, score, lambda: next(run))
    assert trials[0].settings == START
    assert len(trials) == 2


def test_search_takes_small_gains_for_noise() -> None:
    def nearly_flat(settings: Settings) -> Trial:
        return Trial(settings, [Point(1, 10 + 0.01 * sum(settings.values()) / 1e4, 50.0, 0)])

    trials = search(START, nearly_flat, score, lambda: True)
    assert len(trials) == 1 + sum(len(values) - 1 for values in SPACE.values())  # one pass around the start


def test_search_finds_what_answers_at_all() -> None:
    def answers_with_two_decoders(settings: Settings) -> Trial:
        return Trial(settings, [Point(1, 10, 50.0, errors=int(settings["decoder.instances"] == 1))])

    trials = search(START, answers_with_two_decoders, score, lambda: True)
    assert trials[-1].settings["decoder.instances"] == 2  # the search went on from there


def test_score() -> None:
    """A server that refuses at once is not fast."""
    trial = Trial(START, [Point(1, 5, 90, 0), Point(2, 9, 99, 0), Point(4, 12, 101, 0), Point(8, 14, 3, 1)])
    assert trial.score(100) == 9
    assert trial.score(50) == -90
    assert trial.best(50) is None
    assert Trial(START, [Point(1, 0, 0, 7)]).score(50) == -math.inf


def test_gains() -> None:
    assert is_gain(10.4, 10)
    assert not is_gain(10.2, 10)
    assert is_gain(-90, -100)
    assert not is_gain(-99, -100)
    assert is_gain(-100, -math.inf)
    assert not is_gain(-math.inf, -math.inf)


def test_what_fails_is_no_answer() -> None:
    chosen = mix.load(MIX_FILE)
    with tiny_triton() as tiny:
        answered = measure(tiny.url("grpc"), chosen, 2, 0.2)
        tiny.answer = refuse
        refused = measure(tiny.url("grpc"), chosen, 2, 0.2)
    assert answered.errors == 0 < answered.rps
    assert answered.p95_ms > 0
    assert refused.errors > 0
    assert (refused.rps, refused.p95_ms) == (0, 0)


def refuse(_: Inputs) -> Answer:
    raise Refusal(grpc.StatusCode.INTERNAL, "no memory")


def test_chart(tmp_path: Path) -> None:
    """There is a chart even if every trial failed."""
    failed, fine = Trial(START, [Point(1, 0, 0, 7)]), made_up(START)
    for name, trials in {"none": [failed], "some": [failed, fine]}.items():
        chart(trials, START, START, 100, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 1000


def test_settings_are_read_and_written(tmp_path: Path) -> None:
    for source in (ROOT / "model_repository").glob("*/config*"):
        for file in [source] if source.is_file() else source.iterdir():
            target = tmp_path / file.relative_to(ROOT / "model_repository")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    before = read_settings(tmp_path, "cpu")
    assert before["encoder.preferred_batch"] == 8
    write_settings(tmp_path, "cpu", before)
    assert read_settings(tmp_path, "tuned") == before
    for model in ("encoder", "decoder"):  # the rest stays: instances, the bound of the queue, parameters
        assert read_config(tmp_path, model, "tuned") == read_config(tmp_path, model, "cpu")
    changed = {name: values[-1] for name, values in SPACE.items()}
    write_settings(tmp_path, "cpu", changed)
    assert read_settings(tmp_path, "tuned") == changed
    assert read_settings(tmp_path, "cpu") == before
    bound = read_config(tmp_path, "decoder", "tuned").dynamic_batching.default_queue_policy.max_queue_size
    assert bound == read_config(tmp_path, "decoder", "cpu").dynamic_batching.default_queue_policy.max_queue_size


def run_tune(*options: str | Path | float) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "blipstream_tune", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout


@pytest.mark.full
def test_a_real_trial(artifacts: Path, tmp_path: Path) -> None:
    """One trial, since there is no time for a second."""
    before = {path: path.read_bytes() for path in artifacts.rglob("*.pbtxt")}
    status, said = run_tune(
        *("--p95-ms", 60000, "--repository", artifacts, "--budget", 0, "--seconds", 1, "--max-in-flight", 2),
        *("--name", "one", "--output", tmp_path),
    )
    assert status == 0, said
    assert "tuned: as before" in said
    result = json.loads((tmp_path / "one" / "tune.json").read_text())
    assert [point["in_flight"] for point in result["trials"][0]["points"]] == [1, 2]
    assert result["tuned"] == result["before"] == read_settings(tmp_path / "one" / "repository", "tuned")
    with Image.open(tmp_path / "one" / "tune.png") as image:
        assert image.width > 1000
    assert {path: path.read_bytes() for path in artifacts.rglob("*.pbtxt")} == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--p95-ms", "0"], "0.0 is not in the range x>0"),
        (["--p95-ms", "100", "--mix", str(ROOT / "README.md")], "Error: "),
        (["--p95-ms", "100", "--repository", str(ROOT / "tests")], "is no configuration of a model"),
    ],
)
def test_mistakes(options: list[str], sentence: str, tmp_path: Path) -> None:
    status, said = run_tune(*options, "--output", tmp_path)
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said
