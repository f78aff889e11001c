# SPDX-License-Identifier: Apache-2.0
"""`blipstream explain`: pictures of where the model looked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from blipstream_client._cli_options import check_picture
from blipstream_client._cli_output import print_explanation
from blipstream_client._client import Client
from blipstream_client._exceptions import InvalidRequest
from blipstream_client._explain_options import ExplainOptions
from blipstream_client._explanation import ANIMATION, AnyExplanation, MatchExplanation
from blipstream_client._images import ImageLike
from blipstream_client._notices import say

OF_MATCH = ("layer", "head", "resize_mode")  # options that --match takes
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


def check_match(text: str | None, given: str | None, options: Mapping[str, Any]) -> None:
    """Raise UsageError if --match has a `text` beside a `given` caption, or beside options for captions."""
    for_captions = {"caption": given, **{name: options[name] for name in options if name not in OF_MATCH}}
    wrong = [name for name, value in for_captions.items() if value is not None]
    if text is not None and wrong:
        flag = wrong[0].replace("_", "-")
        raise click.UsageError(f"--match explains a text, and --{flag} is for captions: leave one of them out")


def ask(client: Client, image: ImageLike, match: str | None, given: str | None, options: Any) -> AnyExplanation:  # noqa: ANN401
    """The explanation of the text that is to match, or of a caption. Raises BlipstreamError."""
    if match is None:
        return client.explain(image, given, **cast(ExplainOptions, options))
    return client.explain_match(image, match, **{name: options[name] for name in OF_MATCH})


def show(name: str, explanation: AnyExplanation, as_json: bool, output: str | None, word: str | None) -> None:
    """Write the picture, and print the caption, or all as JSON. Raises InvalidRequest if there is no such word."""
    if output:
        _save(explanation, output, word)
    if as_json:
        print_explanation(name, explanation)
        return
    match = f"{explanation.match:.3f}  " if isinstance(explanation, MatchExplanation) else ""
    click.echo(f"{name}: {match}{' '.join(explanation.words)}")
    if output:
        say(f"heatmaps: {output}" if word is None else f"heatmap of {word!r}: {output}")


def _save(explanation: AnyExplanation, output: str, word: str | None) -> None:
    try:
        if Path(output).suffix.lower() == ANIMATION:
            explanation.save_gif(output)
        else:
            picture = explanation.strip() if word is None else explanation.overlay(word)
            picture.save(output)
    except OSError as exc:
        raise InvalidRequest(f"Cannot write {output}: {exc.strerror or exc}") from exc
