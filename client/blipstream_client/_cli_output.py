# SPDX-License-Identifier: Apache-2.0
"""What the command line prints: lines for people, or a JSON object a line."""

import json
from collections.abc import Iterable
from typing import Any

import click

from blipstream_client._captions import Caption, Piece
from blipstream_client._exceptions import BlipstreamError
from blipstream_client._text import excerpt

LONGEST_NAME = 200  # characters of a file's name in an error


def print_result(name: str, result: Caption | BlipstreamError, as_json: bool) -> None:
    """Print the caption or the error of one image."""
    match result, as_json:
        case Caption(), False:
            for each in (result, *result.alternatives):
                click.echo(f"{name}: {each.text}")
        case _, False:
            # a name as it is, or a part of anything else, such as a data URL
            shown = name if len(name) <= LONGEST_NAME else excerpt(name)
            click.echo(f"{shown}: {result}", err=True)
        case Caption(), True:
            print_json(file=name, **_fields(result))
        case _, True:
            print_json(file=name, error=str(result))


def print_words(name: str, pieces: Iterable[Piece]) -> None:
    """Print a line that grows with each piece, and then a line for each alternative."""
    begun = False
    alternatives: tuple[Caption, ...] = ()
    try:
        for piece in pieces:
            text = piece.text if begun else f"{name}: {piece.text}"
            begun = True
            click.echo(text, nl=False)  # echo flushes
            alternatives = piece.caption.alternatives if piece.caption else ()
    finally:
        if begun:
            click.echo()
    for each in alternatives:
        click.echo(f"{name}: {each.text}")


def print_pieces(name: str, pieces: Iterable[Piece]) -> None:
    """Print an object for each piece. The last one has the fields of the whole caption, too."""
    for piece in pieces:
        whole = {} if piece.caption is None else _fields(piece.caption) | {"finish_reason": piece.caption.finish_reason}
        print_json(**{"file": name, "text": piece.text, "text_score": piece.score, **whole})


def print_json(**fields: Any) -> None:  # noqa: ANN401
    """Print one JSON object on a line."""
    click.echo(json.dumps(fields, ensure_ascii=False))


def _fields(caption: Caption) -> dict[str, Any]:
    """The caption as JSON, with its alternatives if it has any."""
    fields: dict[str, Any] = {"caption": caption.text, "score": caption.score, "num_tokens": caption.num_tokens}
    if caption.alternatives:
        fields["alternatives"] = [_fields(other) for other in caption.alternatives]
    return fields
