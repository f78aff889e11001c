# SPDX-License-Identifier: Apache-2.0
"""The client's own commands: `caption`, `explain`, `match`, `search` and `info`."""

import dataclasses
import glob
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any, cast

import click
from click.core import ParameterSource

from blipstream_client import _explain_command as explaining
from blipstream_client._base import DEFAULT_RETRIES, DEFAULT_TIMEOUT
from blipstream_client._captions import Caption
from blipstream_client._cli_options import (
    DEFAULTS,
    IMAGE_OPTIONS,
    caption_options,
    check_picture,
    client_options,
    connection_options,
    explain_options,
    option_help,
    rerank_options,
)
from blipstream_client._cli_output import (
    print_info,
    print_json,
    print_matches,
    print_pieces,
    print_result,
    print_words,
)
from blipstream_client._client import Client
from blipstream_client._client_command import ClientCommand, several_names
from blipstream_client._exceptions import (
    AccessDenied,
    BlipstreamError,
    InvalidImage,
    InvalidURL,
    ModelNotReady,
    ServerUnreachable,
)
from blipstream_client._files import MAX_BYTES
from blipstream_client._images import ImageLike
from blipstream_client._notices import Failure, Waiting, hint
from blipstream_client._options import OPTIONS, Options
from blipstream_client._rerank_options import RERANK_OPTIONS, RerankOptions
from blipstream_client.bulk.sources import STANDARD_INPUT
from blipstream_client.search.output import MOST_PICTURES, print_hits, save_sheet, say_failures
from blipstream_client.search.searcher import Searcher
from blipstream_client.search.table import Table

MOST_HITS = 10_000  # of a search

CONNECTION_OPTIONS = connection_options(DEFAULT_TIMEOUT, DEFAULT_RETRIES)

# Errors that every other image would get, too
OF_THE_SERVER = (AccessDenied, InvalidURL, ModelNotReady, ServerUnreachable)

Sources = Sequence[tuple[str, str]]  # names as they are shown, and as they are


@click.command(cls=ClientCommand, epilog=DEFAULTS)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, callback=several_names)
@client_options(CONNECTION_OPTIONS, IMAGE_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--stream", is_flag=True, help="Print words as they come; with --json, an object for each piece.")
@rerank_options
@caption_options
def caption(
    images: tuple[str, ...],
    connection: dict[str, Any],
    as_json: bool,
    stream: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Print a line for each IMAGE, a file, a URL, or - for standard input."""
    if stream and (given := [name for name in RERANK_OPTIONS if options.pop(name) is not None]):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"--stream prints words before captions can be compared: leave it or {flags} out")
    sources = [(click.format_filename(name), name) for name in images]
    with Client(**connection) as client, Waiting(connection["url"], connection["timeout"]) as waiting:
        succeeded = (_stream if stream else _caption)(client, sources, as_json, cast(RerankOptions, options), waiting)
    sys.exit(0 if succeeded else 1)


@click.command(cls=ClientCommand, epilog=DEFAULTS)
@click.argument("image", metavar="IMAGE")
@click.option(
    "--output",
    help="The picture to write. A .gif goes through the words; .png, .jpg or .webp shows all.  [default: none]",
)
@click.option("--word", help="Draw this word's heatmap alone, or that of several in a row.  [default: all words]")
@click.option("--caption", "given", help="Explain this caption.  [default: the one that the model finds]")
@click.option("--match", "text", help="Explain how this text matches, by a retrieval checkpoint.  [default: none]")
@client_options(connection_options(DEFAULT_TIMEOUT, DEFAULT_RETRIES, has_model=False), IMAGE_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the heatmaps as numbers.")
@explain_options
def explain(
    image: str,
    output: str | None,
    word: str | None,
    given: str | None,
    text: str | None,
    connection: dict[str, Any],
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Print the caption of IMAGE, a file, a URL, or - for standard input, and draw heatmaps of its words."""
    explaining.check_output(output, word)
    explaining.check_match(text, given, options)
    with Client(**connection) as client, Waiting(connection["url"], connection["timeout"]) as waiting:
        waiting.begin()
        found = explaining.ask(client, _image(image), text, given, options)
    explaining.show(click.format_filename(image), found, as_json, output, word)


@click.command(cls=ClientCommand)
@click.argument("image", metavar="IMAGE")
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@client_options(connection_options(DEFAULT_TIMEOUT, DEFAULT_RETRIES, has_model=False), IMAGE_OPTIONS)
@click.option("--truncate/--no-truncate", default=None, help="Cut texts that are too long.  [default: refuse them]")
@click.option("--resize-mode", help=option_help("resize_mode", OPTIONS["resize_mode"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with logits and similarities, too.")
def match(
    image: str,
    texts: tuple[str, ...],
    connection: dict[str, Any],
    truncate: bool | None,
    resize_mode: str | None,
    as_json: bool,
) -> None:
    """Print how likely each TEXT is to match IMAGE, a file, a URL, or - for standard input.

    The server needs a retrieval checkpoint, such as Salesforce/blip-itm-base-coco.
    """
    with Client(**connection) as client, Waiting(connection["url"], connection["timeout"]) as waiting:
        waiting.begin()
        found = client.match(_image(image), texts, truncate=truncate, resize_mode=resize_mode)
    print_matches(click.format_filename(image), found, as_json)


@click.command(cls=ClientCommand)
@click.argument("table", metavar="EMBEDDINGS")
@click.argument("text", required=False)
@click.option("--image", help="Search by this image: a file, a URL, or - for standard input.  [default: by the TEXT]")
@click.option("--k", type=click.IntRange(1, MOST_HITS), default=10, show_default=True, help="How many images to find.")
@click.option(
    "--rerank",
    type=click.IntRange(1, MOST_HITS),
    default=50,
    show_default=True,
    help="How many of the nearest images are matched with the TEXT, and ranked anew. That needs the images.",
)
@click.option("--no-rerank", is_flag=True, help="Rank by similarity alone.")
@click.option(
    "--sheet", help=f"A PNG file for a contact sheet of the images, of {MOST_PICTURES} at most.  [default: none]"
)
@client_options(connection_options(DEFAULT_TIMEOUT, DEFAULT_RETRIES, has_model=False), IMAGE_OPTIONS)
@click.option("--truncate/--no-truncate", default=None, help="Cut a TEXT that is too long.  [default: refuse it]")
@click.option("--resize-mode", help=option_help("resize_mode", OPTIONS["resize_mode"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with hashes, logits and errors, too.")
def search(
    table: str,
    text: str | None,
    image: str | None,
    k: int,
    rerank: int,
    no_rerank: bool,
    sheet: str | None,
    connection: dict[str, Any],
    truncate: bool | None,
    resize_mode: str | None,
    as_json: bool,
) -> None:
    """Find the images that TEXT describes.

    EMBEDDINGS is Parquet that `blipstream embed` has written. It must come from the server's own retrieval checkpoint.
    """
    if (text is None) == (image is None):
        raise click.UsageError("Give either a TEXT in quotes or an --image to search by")
    if sheet is not None:
        check_picture("--sheet", sheet, [".png"])
    embeddings = Table(table)
    with Searcher(**connection) as searcher, Waiting(connection["url"], connection["timeout"]) as waiting:
        waiting.begin()
        if image is not None:
            shown, query = click.format_filename(image), searcher.embed_image(_image(image), resize_mode=resize_mode)
        else:
            shown, query = text or "", searcher.embed_text(text or "", truncate=truncate)
        waiting.end()
        near = 0 if no_rerank or image is not None else rerank
        found = searcher.nearest(embeddings, query, max(k, near))
        waiting.begin()
        hits = searcher.reranked(found[:near], shown, truncate=truncate, resize_mode=resize_mode) + found[near:]
        waiting.end()
        print_hits(shown, hits[:k], as_json)
        say_failures(hits)
        if sheet is not None:
            save_sheet(searcher, hits[:k], sheet)


@click.command(cls=ClientCommand)
@client_options(CONNECTION_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the whole revision, for programs.")
def info(connection: dict[str, Any], as_json: bool) -> None:
    """Print the server's version, checkpoint and options, and the defaults that it has changed."""
    with Client(**connection) as client, Waiting(connection["url"], connection["timeout"]) as waiting:
        waiting.begin()
        found = client.info()
    if as_json:
        print_json(**dataclasses.asdict(found))
    else:
        print_info(found)
        hint("Next: blipstream caption --help explains the options")


def _image(name: str) -> ImageLike:
    """The image for the client. Standard input is read here, in the main thread, where Ctrl-C ends it."""
    if name != STANDARD_INPUT:
        return name
    try:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except (AttributeError, OSError) as exc:  # it is closed, or a folder
        raise InvalidImage(f"Cannot read standard input: {getattr(exc, 'strerror', None) or 'it is closed'}") from exc


def _caption(client: Client, sources: Sources, as_json: bool, options: RerankOptions, waiting: Waiting) -> bool:
    """Print the result of each image. True if each has a caption. Raises Failure if no other image can have one."""
    succeeded = True
    with closing(client.caption_many((_image(name) for _, name in sources), **options)) as results:
        for number, ((shown, name), result) in enumerate(zip(sources, waiting.until_first(results), strict=True)):
            if isinstance(result, BlipstreamError):
                _check_server(result, number, len(sources))
                succeeded = False
            print_result(shown, _with_remedy(name, result), as_json)
    return succeeded


def _stream(client: Client, sources: Sources, as_json: bool, options: Options, waiting: Waiting) -> bool:
    """Print the captions one after another, as their pieces come. It returns and raises as `_caption` does."""
    succeeded = True
    for number, (shown, name) in enumerate(sources):
        try:
            with closing(client.stream(_image(name), **options)) as pieces:
                (print_pieces if as_json else print_words)(shown, waiting.until_first(pieces))
        except BlipstreamError as exc:
            _check_server(exc, number, len(sources))
            succeeded = False
            print_result(shown, _with_remedy(name, exc), as_json)
    return succeeded


def _check_server(error: BlipstreamError, done: int, count: int) -> None:
    """Raise Failure if every other image would get the same error."""
    if isinstance(error, OF_THE_SERVER):
        raise Failure(f"{error} ({done:,} of {count:,} images are done)" if done else str(error)) from error


def _with_remedy(name: str, result: Caption | BlipstreamError) -> Caption | BlipstreamError:
    """The same result, or a better error if the name is no image's but what people try."""
    if not isinstance(result, InvalidImage):
        return result
    given = click.get_current_context()
    url = f" --url {given.params['url']}" if given.get_parameter_source("url") is ParameterSource.COMMANDLINE else ""
    command = f"blipstream bulk {shlex.quote(name)} --output captions.jsonl{url}"
    with suppress(OSError, ValueError):  # the name is too long, or has a zero byte
        if os.path.isdir(name):  # noqa: PTH112  # Path raises for odd names
            return InvalidImage(f"It is a folder, which is for bulk: {command}")
        if glob.has_magic(name) and not os.path.exists(name):  # noqa: PTH110
            found = next(glob.iglob(name, recursive=True), None)  # noqa: PTH207
            wrong = "No file is like this pattern: mend it" if found is None else "It is a pattern in quotes"
            return InvalidImage(wrong if found is None else f"{wrong}: take them off, or use {command}")
    return result
