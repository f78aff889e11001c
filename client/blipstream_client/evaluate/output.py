# SPDX-License-Identifier: Apache-2.0
"""What an evaluation prints."""

from collections.abc import Mapping, Sequence

import click

from blipstream_client._cli_output import print_json
from blipstream_client._notices import say
from blipstream_client._text import excerpt
from blipstream_client.bulk.items import counted
from blipstream_client.evaluate.compare import RESAMPLES, Difference, verdict
from blipstream_client.evaluate.run import Gathered
from blipstream_client.evaluate.scores import LENGTH
from blipstream_client.evaluate.tokens import DESCRIPTIONS

MOST_NAMES = 3  # in a sentence
WIDTH = 12  # characters of a column


def print_scores(found: Gathered, columns: Mapping[str, Mapping[str, float]], tokenization: str, as_json: bool) -> None:
    """Print a line for each figure, with a column for all images and each domain, and what is left out."""
    for why, names in found.left_out.items():
        _say(names, f"{len(names):,} of {found.total:,} images {why}, and are left out")
    _say(found.others, f"{len(found.others):,} captions are of images that are not annotated")
    if as_json:
        counts = {"images": len(found.rows), "of": found.total, "left_out": found.left_out}
        print_json(**counts, tokens=tokenization, figures=columns)
        return
    click.echo(f"{len(found.rows):,} of {counted(found.total, 'image')}; tokens: {DESCRIPTIONS[tokenization]}")
    if len(columns) > 1:
        click.echo(" " * WIDTH + "".join(f"{name:>{WIDTH}}" for name in columns))
    for name in next(iter(columns.values())):
        cells = (_shown(name, figures[name]) if name in figures else "" for figures in columns.values())
        click.echo(f"{name:<{WIDTH}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells))


def _say(names: Sequence[object], sentence: str) -> None:
    """Say the sentence with the first of the names, if there are any."""
    if names:
        shown = ", ".join(excerpt(name) for name in names[:MOST_NAMES])
        say(f"{sentence}: {shown}{', ...' if len(names) > MOST_NAMES else ''}")


def print_comparison(names: Sequence[str], differences: Sequence[Difference], count: int, as_json: bool) -> None:
    """Print a line for each metric, and the verdict."""
    if as_json:
        print_json(
            runs=names,
            images=count,
            resamples=RESAMPLES,
            metrics=[{**each._asdict(), "difference": each.difference} for each in differences],
            verdict=verdict(differences),
        )
        return
    click.echo(f"{count:,} images; intervals of 95 % by {RESAMPLES:,} paired bootstrap resamples")
    click.echo(" " * WIDTH + "".join(f"{name:>{WIDTH}}" for name in ("first", "second", "difference", "from", "to")))
    for each in differences:
        numbers = each.first, each.second, each.difference, each.low, each.high
        click.echo(f"{each.metric:<{WIDTH}}" + "".join(f"{_shown(each.metric, number):>{WIDTH}}" for number in numbers))
    click.echo(verdict(differences))


def _shown(name: str, figure: float) -> str:
    """The figure as papers have it."""
    return f"{figure:.2f}" if name == LENGTH else f"{100 * figure:.2f}"
