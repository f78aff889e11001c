# SPDX-License-Identifier: Apache-2.0
"""From images a day to a number of machines."""

import click
import pytest

from blipstream_loadtest.machines import Demand, number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5000000", 5e6),
        ("5_000_000", 5e6),
        ("5,000,000", 5e6),
        ("5e6", 5e6),
        ("5E+6", 5e6),
        ("5M", 5e6),
        (" 2.5 m ", 2.5e6),
        ("250k", 250e3),
        ("1G", 1e9),
        ("0.5", 0.5),
    ],
)
def test_numbers_as_people_write_them(text: str, expected: float) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    "text", ["", "many", "-5", "0", "5,0", "5.000.000", "5 million", "nan", "inf", "5e400", "0x10"]
)
def test_no_number(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a number above 0, such as 5000000, 5_000_000, 5e6 or 5M"):
        number(text)


def test_five_million_a_day() -> None:
    """5e6 / 86400 s = 57.9 a second, times 2.5 = 144.7; a machine at 70 % of 67.55 answers 47.3."""
    demand = Demand(5e6)
    assert demand.average == pytest.approx(57.87, abs=0.01)
    assert demand.peak == pytest.approx(144.68, abs=0.01)
    assert demand.machines(67.55) == 4
    assert Demand(5e6, peak_factor=1).machines(67.55) == 2
    assert demand.text() == (
        "5,000,000 images a day are 57.9 a second on average and 144.7 at the peak, 2.5 times that."
    )


def test_machines_are_whole() -> None:
    assert Demand(86400, peak_factor=7).machines(10.0) == 1  # exactly 70 %
    assert Demand(86401, peak_factor=7).machines(10.0) == 2
    assert Demand(1).machines(1000.0) == 1
