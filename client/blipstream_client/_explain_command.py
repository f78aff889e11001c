# SPDX-License-Identifier: Apache-2.0
"""`blipstream explain`: pictures of where the model looked."""

from pathlib import Path

import click

from blipstream_client._cli_options import check_picture
from blipstream_client._cli_output import print_explanation
from blipstream_client._exceptions import InvalidRequest
from blipstream_client._explanation import ANIMATION, Explanation
from blipstream_client._notices import say

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ANIMATION)  # of files that it writes


def check_output(output: str | None, word: str | None) -> None:
    """Raise UsageError unless there will be a picture, and its file can be written."""
    if output is None:
        if word is not None:
            raise click.UsageError("--word is for a picture: name its file with --output, too")
        return
    check_picture("--output", output, SUFFIXES)
    if word is not None and Path(output).suffix.lower() == ANIMATION:
        raise click.UsageError("A GIF goes through all words: leave --word out, or write a PNG file")


def show(name: str, explanation: Explanation, as_json: bool, output: str | None, word: str | None) -> None:
    """Write the picture, and print the caption, or all as JSON. Raises InvalidRequest if there is no such word."""
    if output:
        _save(explanation, output, word)
    if as_json:
        print_explanation(name, explanation)
        return
    click.echo(f"{name}: {' '.join(explanation.words)}")
    if output:
        say(f"heatmaps: {output}" if word is None else f"heatmap of {word!r}: {output}")


def _save(explanation: Explanation, output: str, word: str | None) -> None:
    try:
        if Path(output).suffix.lower() == ANIMATION:
            explanation.save_gif(output)
        else:
            picture = explanation.strip() if word is None else explanation.overlay(word)
            picture.save(output)
    except OSError as exc:
        raise InvalidRequest(f"Cannot write {output}: {exc.strerror or exc}") from exc
