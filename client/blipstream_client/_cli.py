# SPDX-License-Identifier: Apache-2.0
"""The command `blipstream`, which imports its subcommands only when they are run: most need a lot."""

import errno
import os
import sys
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from blipstream_client import __version__
from blipstream_client import _plugins as plugins
from blipstream_client._notices import Failure, in_short_lines

OWN = {  # with their help
    "caption": "Print the captions of images.",
    "explain": "Show where the model looked for each word.",
    "bulk": "Caption any number of images into a file.",
    "embed": "Embed any number of images into a file, for search.",
    "filter": "Clean a data set: keep the texts that match their images.",
    "evaluate": "Score captions by COCO's metrics, and compare two runs.",
    "match": "Print how well texts match an image.",
    "search": "Find the images that a text describes, or that are like an image.",
    "info": "Print what the server is.",
}

# where they are; the others are in `_commands`
MODULES = {
    "bulk": "_bulk_commands",
    "embed": "_bulk_commands",
    "filter": "_bulk_commands",
    "evaluate": "_evaluate_command",
}


class Program(click.Group):
    """The command. It loads a subcommand only when that is run."""

    def main(self, *arguments: Any, **extra: Any) -> Any:  # noqa: ANN401
        """Run the command, and exit. An output that cannot be written ends it with one sentence."""
        try:
            return super().main(*arguments, **extra)
        except OSError as exc:  # but not EPIPE, for which click exits
            with suppress(AttributeError, OSError):  # there is no standard output
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python writes again as it exits
            click.echo(f"Error: Cannot write the output: {exc.strerror or exc}", err=True)
            sys.exit(1)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:  # noqa: ANN401
        """Read the arguments before the subcommand."""
        with in_short_lines():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run a subcommand."""
        try:
            with in_short_lines():
                return super().invoke(ctx)
        except click.ClickException as exc:
            if type(exc) is click.ClickException:  # another package's
                raise Failure(exc.message) from exc
            raise
        except OSError as exc:
            if ctx.invoked_subcommand in OWN or exc.errno == errno.EPIPE:
                raise
            raise Failure(f"blipstream {ctx.invoked_subcommand} failed: {exc}") from exc

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """A subcommand of this package or another. Raises Failure if it is not installed, or broken."""
        if cmd_name in OWN:
            module = MODULES.get(cmd_name, "_commands")
            command: click.Command = getattr(import_module(f"blipstream_client.{module}"), cmd_name)
            return command
        return plugins.load(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A subcommand by its name. Raises UsageError, with the nearest name, if there is none."""
        name = args[0]
        if name.startswith("-") or self.get_command(ctx, name):
            return super().resolve_command(ctx, args)
        near = get_close_matches(name, {*self.list_commands(ctx), *plugins.SERVER_COMMANDS}, 1)
        raise click.UsageError(f"No such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names of all subcommands."""
        return [*OWN, *plugins.installed()]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write a line for each subcommand without loading any."""
        installed, missing = plugins.help_lines()
        with formatter.section("Commands"):
            formatter.write_dl([*(OWN | installed | OWN).items()])
        if missing:
            with formatter.section("Commands of the server's package, which is not installed"):
                formatter.write_dl([*missing.items()])
            formatter.write_paragraph()
            formatter.write_text(f"The server's package is {plugins.INSTALL}.")


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})  # for all subcommands
@click.version_option(__version__, prog_name="blipstream")
def main() -> None:
    """Captions for images from a Blipstream server."""
