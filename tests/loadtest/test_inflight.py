# SPDX-License-Identifier: Apache-2.0
"""The comparison of two ways to batch: both answer every request of the same arrivals."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from blipstream.decoding import load_engine
from inflight import DRIVERS, arrivals, main, measure


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_request_is_timed(f32_artifacts: Path, driver: str) -> None:
    engine = load_engine(f32_artifacts / "decoder/1/artifact")
    expected = list(arrivals(rate=40, seconds=0.5, seed=0))
    latencies, rate = measure(DRIVERS[driver](engine), engine, expected)
    assert {length: len(times) for length, times in latencies.items()} == {
        length: sum(each == length for _, each in expected) for length in {length for _, length in expected}
    }
    assert all(time > 0 for times in latencies.values() for time in times)
    assert rate > 0


def test_arrivals() -> None:
    """They come at the given rate, in order, and are the same for a seed."""
    expected = list(arrivals(rate=100, seconds=100, seed=1))
    assert len(expected) == pytest.approx(10_000, rel=0.05)
    assert expected == sorted(expected) == list(arrivals(rate=100, seconds=100, seed=1))
    assert sum(length == 4 for _, length in expected) / len(expected) == pytest.approx(0.7, abs=0.03)


def test_no_artifacts(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--repository", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: there is no artifact in {tmp_path / 'decoder/1/artifact'}")
