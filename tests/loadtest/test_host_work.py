# SPDX-License-Identifier: Apache-2.0
"""The profile of the host's work runs without a GPU."""

from click.testing import CliRunner

from host_work import main, measure


def test_figures() -> None:
    for streams in (False, True):
        figures = measure(4, 3, streams=streams)
        assert all(microseconds > 0 for microseconds in figures.values())


def test_profile() -> None:
    result = CliRunner().invoke(main, ["--rows", "4", "--tokens", "3"], catch_exceptions=False)
    assert "an image: its steps" in result.output
