# SPDX-License-Identifier: Apache-2.0
"""What the command line prints: lines for people, or a JSON object a line."""

import dataclasses
import json
import textwrap
from collections.abc import Iterable
from typing import Any

import click

from blipstream_client._captions import Caption, Piece
from blipstream_client._exceptions import BlipstreamError
from blipstream_client._explanation import AnyExplanation, MatchExplanation
from blipstream_client._info import Adapter, Matching, ServerInfo
from blipstream_client._matches import Matches
from blipstream_client._notices import COLUMNS, say
from blipstream_client._text import excerpt

LONGEST_NAME = 200  # characters of a file's name in an error
REVISION_CHARACTERS = 12  # of a checkpoint, which tell it from any other
HEATMAP_DECIMALS = 6  # of shares of about 0.01
LABEL = "{:<12}"


def print_result(name: str, result: Caption | BlipstreamError, as_json: bool) -> None:
    """Print the caption or the error of one image."""
    match result, as_json:
        case Caption(why_empty=why), False if why:
            say(f"{name}: {why}")
        case Caption(), False:
            for each in (result, *result.alternatives):
                click.echo(f"{name}: {each.text}")
        case _, False:
            # a name as it is, or a part of anything else, such as a data URL
            shown = name if len(name) <= LONGEST_NAME else excerpt(name)
            say(f"{shown}: {result}")
        case Caption(), True:
            print_json(file=name, **_fields(result))
        case _, True:
            print_json(file=name, error=str(result))


def print_explanation(name: str, explanation: AnyExplanation) -> None:
    """Print an object with the caption's fields or those of the match, the words and their heatmaps."""
    heatmaps = explanation.attention.round(HEATMAP_DECIMALS).tolist()
    if isinstance(explanation, MatchExplanation):
        fields: dict[str, Any] = {"text": str(explanation), "match": explanation.match, "logit": explanation.logit}
    else:
        fields = _fields(explanation.caption)
    print_json(file=name, **fields, words=explanation.words, attention=heatmaps)


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


def print_matches(name: str, matches: Matches, as_json: bool) -> None:
    """Print a line for each text, with its probability, or one object with all scores."""
    if as_json:
        print_json(file=name, matches=[dataclasses.asdict(each) for each in matches])
        return
    for each in matches:
        click.echo(f"{each.match:.3f}  {each.text}")


def print_info(info: ServerInfo) -> None:
    """Print what a server is, in aligned lines."""
    defaults = {each: json.dumps(value, ensure_ascii=False) for each, value in info.defaults.items()}
    described = {
        "server": f"Triton {info.version}",
        "checkpoint": _short(info.checkpoint),
        **({"matching": _matching(info.matching)} if info.matching else {}),
        "models": ", ".join(info.models) or "none",
        "runtimes": ", ".join(f"{model} on {runtime}" for model, runtime in info.runtimes.items()),
        "options": ", ".join(info.options) or "none",
        "defaults": ", ".join(f"{each}={value}" for each, value in defaults.items()) or "the built-in ones",
        "fixed": ", ".join(info.fixed) or "none: a request may set every option",
    }
    if info.adapters:
        described["adapters"] = ", ".join(map(_adapter, info.adapters))
    if info.calibration:
        temperature, threshold = info.calibration.temperature, info.calibration.threshold
        described["calibrated"] = f"temperature {temperature:.3f}, threshold {threshold:.3f}"
    for label, text in described.items():
        begin, indent = LABEL.format(label), LABEL.format("")
        click.echo(
            textwrap.fill(
                text,
                COLUMNS,
                initial_indent=begin,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _short(checkpoint: str | None) -> str:
    """NAME@REVISION with so much of the revision as tells it from others."""
    name, at, revision = (checkpoint or "unknown").partition("@")
    return f"{name}{at}{revision[:REVISION_CHARACTERS]}"


def _adapter(adapter: Adapter) -> str:
    facts = [adapter.language] * (adapter.language not in ("", adapter.name))
    facts += [f"{name} {value:.3g}" for name, value in adapter.metrics.items()]
    return f"{adapter.name} ({'; '.join(facts)})" if facts else adapter.name


def _matching(matching: Matching) -> str:
    dtype = f" in {matching.dtype}" if matching.dtype else ""
    return f"{_short(matching.checkpoint)}{dtype}" + (", with the captioner's encoder" * matching.shares_encoder)


def print_json(**fields: Any) -> None:  # noqa: ANN401
    """Print one JSON object on a line. What a terminal would obey is escaped."""
    text = json.dumps(fields, ensure_ascii=False)
    click.echo("".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text))


def _fields(caption: Caption) -> dict[str, Any]:
    """The caption as JSON, with its alternatives and what matching said of it, if there is any. None: none is left."""
    fields: dict[str, Any] = {"caption": caption.text, "score": caption.score, "num_tokens": caption.num_tokens}
    if caption.why_empty:
        fields = dict.fromkeys(fields) | {"why_empty": caption.why_empty}
    if caption.match is not None:
        fields |= {"match": caption.match, "logit": caption.logit}
    if caption.dropped:
        fields["dropped"] = [{"caption": each.text, "match": each.match} for each in caption.dropped]
    if caption.alternatives:
        fields["alternatives"] = [_fields(other) for other in caption.alternatives]
    return fields
