# SPDX-License-Identifier: Apache-2.0
"""From images a day to a number of machines."""

import math
import re
from dataclasses import dataclass

import click

from blipstream_loadtest.shapes import PLANNED_LOAD

DAY = 86400  # seconds
PEAK_FACTOR = 2.5  # the busiest moment against the day's average, for people of one continent who ask by day
SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
NUMBER = re.compile(r"(\d+(?:[_,]\d{3})*(?:\.\d+)?(?:e\+?\d{1,2})?) ?([kmg]?)", re.IGNORECASE)


def number(text: str) -> float:
    """A number as people write it: 5000000, 5_000_000, 5,000,000, 5e6 or 5M. Raises click.BadParameter."""
    found = NUMBER.fullmatch(text.strip())
    value = float(found[1].replace("_", "").replace(",", "")) * SUFFIXES[found[2].lower()] if found else 0.0
    if not value:
        raise click.BadParameter(f"expected a number above 0, such as 5000000, 5_000_000, 5e6 or 5M, got {text!r}")
    return value


@dataclass(frozen=True)
class Demand:
    """How much is asked of the service."""

    images_per_day: float
    peak_factor: float = PEAK_FACTOR

    @property
    def average(self) -> float:
        """Images a second, over the whole day."""
        return self.images_per_day / DAY

    @property
    def peak(self) -> float:
        """Images a second when most are asked for."""
        return self.average * self.peak_factor

    def machines(self, rps: float) -> int:
        """How many machines answer the peak, each at PLANNED_LOAD of the `rps` requests a second that it can answer."""
        return max(1, math.ceil(self.peak / (PLANNED_LOAD * rps) - 1e-9))

    def text(self) -> str:
        """The demand in one sentence."""
        return (
            f"{self.images_per_day:,.0f} images a day are {self.average:,.1f} a second on average "
            f"and {self.peak:,.1f} at the peak, {self.peak_factor:g} times that."
        )
