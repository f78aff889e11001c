# SPDX-License-Identifier: Apache-2.0
"""The command line: `blipstream caption photo.jpg`."""

import dataclasses
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from typing import Any, cast

import click

from blipstream_client import (
    BlipstreamError,
    Caption,
    Client,
    ImageLike,
    InvalidImage,
    Options,
    Piece,
    __version__,
)
from blipstream_client import _interrupts as interrupts
from blipstream_client._base import DEFAULT_MODEL, DEFAULT_RETRIES, DEFAULT_TIMEOUT, DEFAULT_URL, BaseClient
from blipstream_client._contract import OPTIONS
from blipstream_client._exceptions import excerpt
from blipstream_client._files import MAX_BYTES
from blipstream_client.bulk import job
from blipstream_client.bulk.items import counted

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT
LONGEST_NAME = 200  # characters of a file's that an error shows


Command = Callable[..., None]
Decorator = Callable[[Command], Command]
Sources = Sequence[tuple[str, str]]  # names as they are shown, and as they are


def caption_options(command: Command) -> Command:
    """A flag for each option of a caption."""
    for name, option in reversed(OPTIONS.items()):
        flag = name.replace("_", "-")
        switch = option.kind.python is bool
        declaration = f"--{flag}/--no-{flag}" if switch else f"--{flag}"
        command = click.option(declaration, type=option.kind.python, default=None, help=option.help)(command)
    return command


def _headers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition(":") for value in values]
    if wrong := [name for name, colon, _ in pairs if not colon]:
        raise click.BadParameter(f"expected NAME:VALUE, got {wrong[0]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


FILE = click.Path(dir_okay=False)


def connection_options(timeout: float, retries: int) -> Sequence[Decorator]:
    """Flags of what `Client` wants to know, with these defaults."""
    return [
        click.option(
            "--url",
            envvar="BLIPSTREAM_URL",
            default=DEFAULT_URL,
            show_default=True,
            show_envvar=True,
            help="The server; several, as in grpc://a:8001,b:8001, are asked in turn.",
        ),
        click.option("--model", default=DEFAULT_MODEL, show_default=True, help="The server's name for the model."),
        click.option("--timeout", default=timeout, show_default=True, help="Seconds for an image, with all retries."),
        click.option(
            "--retries",
            default=retries,
            show_default=True,
            help="If the server is overloaded, or it or a URL cannot be reached.",
        ),
        click.option(
            "--header", "headers", multiple=True, metavar="NAME:VALUE", callback=_headers, help="To send along."
        ),
        click.option("--ca-file", type=FILE, help="TLS: certificates to trust instead of the well-known ones."),
        click.option("--cert-file", type=FILE, help="TLS: the client's own certificate."),
        click.option("--key-file", type=FILE, help="TLS: its key, if not in the same file."),
        click.option(
            "--keepalive", type=float, help="Seconds of silence before a connection is checked; a third of --timeout."
        ),
    ]


CONNECTION = connection_options(DEFAULT_TIMEOUT, DEFAULT_RETRIES)
IMAGES: Sequence[Decorator] = [
    click.option("--max-side", type=int, help="Scale larger images down to so many pixels before they are sent."),
    click.option("--allow-private-urls", is_flag=True, help="Fetch images from private networks, too."),
]


def client_options(*groups: Sequence[Decorator]) -> Decorator:
    """The flags that say how to talk to the server, as one argument `connection`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**arguments: Any) -> None:  # noqa: ANN401
            names = inspect.signature(BaseClient).parameters.keys() & arguments.keys()
            command(connection={name: arguments.pop(name) for name in names}, **arguments)

        decorated: Command = collect
        for option in reversed([option for group in groups for option in group]):
            decorated = option(decorated)
        return decorated

    return decorate


class Program(click.Group):
    """The client's errors end it with their sentence, an output that takes no more with another, and Ctrl-C quietly."""

    def main(self, *arguments: Any, **extra: Any) -> Any:  # noqa: ANN401
        """Run it, and exit."""
        try:
            return super().main(*arguments, **extra)
        except OSError as exc:  # click itself has ended it if a pipe was closed
            with suppress(AttributeError, OSError):  # there is none
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again as it exits
            click.echo(f"Error: Cannot write the output: {exc.strerror or exc}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run a command."""
        job.share_one_heap()  # before there is a second thread
        try:
            with interrupts.heard():
                return super().invoke(ctx)
        except BlipstreamError as exc:
            raise click.ClickException(str(exc)) from exc
        except KeyboardInterrupt:
            with suppress(AttributeError, OSError):  # nothing to write to
                sys.stdout.flush()
            os._exit(INTERRUPTED)  # sys.exit would wait for threads that still fetch images


@click.group(cls=Program)
@click.version_option(__version__, prog_name="blipstream")
def main() -> None:
    """Captions for images from a Blipstream server."""


@main.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@client_options(CONNECTION, IMAGES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--stream", is_flag=True, help="Print words as they come; with --json, an object for each piece.")
@caption_options
def caption(
    images: tuple[str, ...],
    connection: dict[str, Any],
    as_json: bool,
    stream: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Print a line for each IMAGE, a file, a URL, or - for standard input."""
    sources = [(click.format_filename(name), name) for name in images]
    with Client(**connection) as client:
        succeeded = (_stream if stream else _caption)(client, sources, as_json, cast(Options, options))
    sys.exit(0 if succeeded else 1)


@main.command()
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True)
@click.option("--output", required=True, help="A file that ends in .parquet, .jsonl or .csv.")
@click.option("--column", help="Where Parquet files have images, URLs, base64 or paths.")
@click.option("--allow-local-paths", is_flag=True, help="Read files of this machine that Parquet files name, too.")
@click.option(
    "--max-in-flight",
    type=click.IntRange(1),
    default=job.DEFAULT_MAX_IN_FLIGHT,
    show_default=True,
    help="Requests at once, if the server takes as many.",
)
@client_options(connection_options(job.DEFAULT_TIMEOUT, job.DEFAULT_RETRIES), IMAGES)
@caption_options
def bulk(
    images: tuple[str, ...],
    output: str,
    column: str | None,
    allow_local_paths: bool,
    max_in_flight: int,
    connection: dict[str, Any],
    **options: Any,  # noqa: ANN401
) -> None:
    """Write a row for each of IMAGES to a file.

    IMAGES are folders, files, URLs, patterns in quotes, tar shards, Parquet files, or - for a list of such names on
    standard input. If it was interrupted, the same command goes on where it ended.
    """
    summary = job.run(
        images,
        output,
        connection=connection,
        options=cast(Options, options),
        column=column,
        allow_local_paths=allow_local_paths,
        max_in_flight=max_in_flight,
    )
    click.echo(f"{counted(summary.rows, 'row')} in {output}, {summary.found:,} of them from before", err=True)
    if summary.left_out:
        click.echo(summary.left_out, err=True)
    if summary.failures:
        click.echo(f"{summary.failures:,} have an error instead of a caption; {summary.first_failure}", err=True)
    sys.exit(1 if summary.failures else 0)


@main.command()
@client_options(CONNECTION)
def info(connection: dict[str, Any]) -> None:
    """Print what the server is, as JSON."""
    with Client(**connection) as client:
        _print_json(**dataclasses.asdict(client.info()))


def _image(name: str) -> ImageLike:
    """What the client takes. Standard input is read here, in the main thread, where Ctrl-C ends it."""
    if name != "-":
        return name
    try:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except (AttributeError, OSError) as exc:  # it is closed, or a folder
        raise InvalidImage(f"Cannot read standard input: {getattr(exc, 'strerror', None) or 'it is closed'}") from exc


def _caption(client: Client, sources: Sources, as_json: bool, options: Options) -> bool:
    """Print what each image gave. True if all gave captions."""
    succeeded = True
    with closing(client.caption_many((_image(name) for _, name in sources), **options)) as results:
        for (shown, _), result in zip(sources, results, strict=True):
            succeeded = succeeded and not isinstance(result, BlipstreamError)
            _print(shown, result, as_json)
    return succeeded


def _stream(client: Client, sources: Sources, as_json: bool, options: Options) -> bool:
    """Print the captions one after the other, word by word. True if all images gave captions."""
    succeeded = True
    for shown, name in sources:
        try:
            with closing(client.stream(_image(name), **options)) as pieces:
                (_print_pieces if as_json else _print_words)(shown, pieces)
        except BlipstreamError as exc:
            succeeded = False
            _print(shown, exc, as_json)
    return succeeded


def _print_words(name: str, pieces: Iterable[Piece]) -> None:
    """A line that grows, and one for each alternative in the end."""
    begun = False
    alternatives: tuple[Caption, ...] = ()
    try:
        for piece in pieces:
            text = piece.text if begun else f"{name}: {piece.text}"
            begun = True
            click.echo(text, nl=False)  # which flushes
            alternatives = piece.caption.alternatives if piece.caption else ()
    finally:
        if begun:
            click.echo()
    for each in alternatives:
        click.echo(f"{name}: {each.text}")


def _print_pieces(name: str, pieces: Iterable[Piece]) -> None:
    """An object for each piece; the last has the fields of the whole caption, too."""
    for piece in pieces:
        whole = {} if piece.caption is None else _fields(piece.caption) | {"finish_reason": piece.caption.finish_reason}
        _print_json(**{"file": name, "text": piece.text, "text_score": piece.score, **whole})


def _findable(name: str) -> str:
    """A file's name as it is; of what is no name, such as a data URL, a part."""
    return name if len(name) <= LONGEST_NAME else excerpt(name)


def _print(name: str, result: Caption | BlipstreamError, as_json: bool) -> None:
    match result, as_json:
        case Caption(), False:
            for each in (result, *result.alternatives):
                click.echo(f"{name}: {each.text}")
        case _, False:
            click.echo(f"{_findable(name)}: {result}", err=True)
        case Caption(), True:
            _print_json(file=name, **_fields(result))
        case _, True:
            _print_json(file=name, error=str(result))


def _fields(caption: Caption) -> dict[str, Any]:
    """What JSON shows of a caption, and of the alternatives if they were asked for."""
    fields: dict[str, Any] = {"caption": caption.text, "score": caption.score, "num_tokens": caption.num_tokens}
    if caption.alternatives:
        fields["alternatives"] = [_fields(other) for other in caption.alternatives]
    return fields


def _print_json(**fields: Any) -> None:  # noqa: ANN401
    click.echo(json.dumps(fields, ensure_ascii=False))
