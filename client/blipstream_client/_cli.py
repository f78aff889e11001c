# SPDX-License-Identifier: Apache-2.0
"""The command `blipstream`: `caption`, `bulk` and `info`, and the commands of other packages."""

import dataclasses
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any, cast

import click

from blipstream_client import __version__
from blipstream_client import _plugins as plugins
from blipstream_client._base import DEFAULT_RETRIES, DEFAULT_TIMEOUT
from blipstream_client._cli_options import IMAGE_OPTIONS, caption_options, client_options, connection_options
from blipstream_client._cli_output import print_json, print_pieces, print_result, print_words
from blipstream_client._client import Client
from blipstream_client._exceptions import BlipstreamError, InvalidImage
from blipstream_client._files import MAX_BYTES
from blipstream_client._images import ImageLike
from blipstream_client._interrupts import prompt_interrupts
from blipstream_client._options import Options
from blipstream_client.bulk import job
from blipstream_client.bulk.items import counted

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT

CONNECTION_OPTIONS = connection_options(DEFAULT_TIMEOUT, DEFAULT_RETRIES)

Sources = Sequence[tuple[str, str]]  # names as they are shown, and as they are


class Program(click.Group):
    """The command. It loads another package's command only when that is run."""

    def main(self, *arguments: Any, **extra: Any) -> Any:  # noqa: ANN401
        """Run the command, and exit. An output that cannot be written ends it with one sentence."""
        try:
            return super().main(*arguments, **extra)
        except OSError as exc:  # but not EPIPE, for which click exits
            with suppress(AttributeError, OSError):  # there is no standard output
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python writes again as it exits
            click.echo(f"Error: Cannot write the output: {exc.strerror or exc}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run a subcommand."""
        try:
            return super().invoke(ctx)
        except OSError as exc:
            if ctx.invoked_subcommand in self.commands or exc.errno == errno.EPIPE:
                raise
            raise click.ClickException(f"blipstream {ctx.invoked_subcommand} failed: {exc}") from exc

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A subcommand of this package or another. Raises ClickException if it is not installed, or broken."""
        return super().get_command(ctx, cmd_name) or plugins.load(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all subcommands."""
        return [*super().list_commands(ctx), *plugins.installed()]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write a line for each subcommand without loading those of other packages."""
        own = {name: command.get_short_help_str() for name, command in self.commands.items()}
        installed, missing = plugins.help_lines()
        with formatter.section("Commands"):
            formatter.write_dl([*(own | installed | own).items()])
        if missing:
            with formatter.section(f"Commands of the server, which needs {plugins.INSTALL}"):
                formatter.write_dl([*missing.items()])


class ClientCommand(click.Command):
    """A subcommand of the client. An exception of the client ends it with one sentence, and Ctrl-C silently."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the subcommand."""
        job.share_one_heap()  # before there is a second thread
        try:
            with prompt_interrupts():
                return super().invoke(ctx)
        except BlipstreamError as exc:
            raise click.ClickException(str(exc)) from exc
        except KeyboardInterrupt:
            with suppress(AttributeError, OSError):  # there is no standard output
                sys.stdout.flush()
            os._exit(INTERRUPTED)  # sys.exit would wait for threads that fetch images


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})  # for all subcommands
@click.version_option(__version__, prog_name="blipstream")
def main() -> None:
    """Captions for images from a Blipstream server."""


@main.command(cls=ClientCommand, short_help="Print the captions of images.")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@client_options(CONNECTION_OPTIONS, IMAGE_OPTIONS)
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


@main.command(cls=ClientCommand, short_help="Caption any number of images into a file.")
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
@client_options(connection_options(job.DEFAULT_TIMEOUT, job.DEFAULT_RETRIES), IMAGE_OPTIONS)
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
    standard input. If the command is interrupted, run it again: it goes on where it ended.
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


@main.command(cls=ClientCommand, short_help="Print what the server is.")
@client_options(CONNECTION_OPTIONS)
def info(connection: dict[str, Any]) -> None:
    """Print the server's version, checkpoint and options as JSON."""
    with Client(**connection) as client:
        print_json(**dataclasses.asdict(client.info()))


def _image(name: str) -> ImageLike:
    """The image for the client. Standard input is read here, in the main thread, where Ctrl-C ends it."""
    if name != "-":
        return name
    try:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except (AttributeError, OSError) as exc:  # it is closed, or a folder
        raise InvalidImage(f"Cannot read standard input: {getattr(exc, 'strerror', None) or 'it is closed'}") from exc


def _caption(client: Client, sources: Sources, as_json: bool, options: Options) -> bool:
    """Print the result of each image. True if each has a caption."""
    succeeded = True
    with closing(client.caption_many((_image(name) for _, name in sources), **options)) as results:
        for (shown, _), result in zip(sources, results, strict=True):
            succeeded = succeeded and not isinstance(result, BlipstreamError)
            print_result(shown, result, as_json)
    return succeeded


def _stream(client: Client, sources: Sources, as_json: bool, options: Options) -> bool:
    """Print the captions one after another, as their pieces come. True if each image has a caption."""
    succeeded = True
    for shown, name in sources:
        try:
            with closing(client.stream(_image(name), **options)) as pieces:
                (print_pieces if as_json else print_words)(shown, pieces)
        except BlipstreamError as exc:
            succeeded = False
            print_result(shown, exc, as_json)
    return succeeded
