# SPDX-License-Identifier: Apache-2.0
"""What a search prints and draws."""

from collections.abc import Sequence
from dataclasses import asdict

import click
from PIL import Image

from blipstream_client import _pictures
from blipstream_client._cli_output import print_json
from blipstream_client._exceptions import InvalidRequest
from blipstream_client._notices import say
from blipstream_client._text import excerpt, printable
from blipstream_client.bulk.errors import reason
from blipstream_client.search.images import images
from blipstream_client.search.nearest import Hit
from blipstream_client.search.searcher import Searcher

MOST_PICTURES = 100  # on a sheet


def print_hits(query: str, hits: Sequence[Hit], as_json: bool) -> None:
    """Print a line for each hit, best first, or one object with all."""
    if as_json:
        print_json(query=query, hits=[{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, 1)])
        return
    has_match = any(hit.match is not None for hit in hits)
    click.echo(f"rank  similarity  {'match  ' if has_match else ''}image")
    for rank, hit in enumerate(hits, 1):
        match = f"{_match(hit):>5}  " if has_match else ""
        copies = f"  (and {hit.copies:,} with the same bytes)" if hit.copies else ""
        click.echo(f"{rank:>4}  {hit.similarity:>10.3f}  {match}{printable(hit.name)}{copies}")


def say_failures(hits: Sequence[Hit]) -> None:
    """Say how many hits could not be matched, and why the first could not."""
    if failed := [hit for hit in hits if hit.error is not None]:
        first = f"{failed[0].name}: {failed[0].error}"
        say(f"{len(failed):,} of the nearest images cannot be matched, and come last; the first is {first}")


def save_sheet(searcher: Searcher, hits: Sequence[Hit], path: str) -> None:
    """Write a picture of the first hits, with rank, name and scores beneath each.

    Raises InvalidRequest if none of them can be drawn, or the file cannot be written.
    """
    shown = {hit.name: hit for hit in hits[:MOST_PICTURES]}
    tiles: dict[str, Image.Image] = {}
    first_error = ""
    for name, image in images(shown):
        try:
            tiles[name] = _pictures.tile(searcher.read(shown[name], image))
        except Exception as exc:  # on bad data PIL raises nearly every built-in type
            first_error = first_error or f"{excerpt(name)}: {reason(exc)}"
    if not tiles:
        raise InvalidRequest(f"None of the images can be drawn for --sheet; the first is {first_error}")
    labels = [_label(rank, hit) for rank, hit in enumerate(shown.values(), 1)]
    try:
        _pictures.contact_sheet([*map(tiles.get, shown)], labels).save(path)
    except OSError as exc:
        raise InvalidRequest(f"Cannot write {path}: {exc.strerror or exc}") from exc
    say(f"contact sheet: {path}")
    if first_error:
        say(f"{len(shown) - len(tiles):,} of its images cannot be drawn; the first is {first_error}")


def _label(rank: int, hit: Hit) -> list[str]:
    name = f"{rank}. {printable(hit.name.rpartition('/')[2])}"
    return [name, f"similarity {hit.similarity:.3f}", f"match {_match(hit)}"]


def _match(hit: Hit) -> str:
    return "-" if hit.match is None else f"{hit.match:.2f}"
