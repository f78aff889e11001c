# SPDX-License-Identifier: Apache-2.0
"""A type for options of commands."""

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """Numbers in a range, without the infinite ones and NaN. Click's own range takes NaN, which is never outside."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """The number. Raises click.BadParameter."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {number}.", param, ctx)
        return number
