# SPDX-License-Identifier: Apache-2.0
"""`blipstream adapter`. What takes seconds to import is imported if there is something to convert."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from blipstream import command_line, signals
from blipstream.config import CheckpointConfig
from blipstream_build.adapters import install
from blipstream_build.adapters.base import DECODER, Base
from blipstream_build.configs import CONFIGS

COLUMNS = "{:<20} {:<8} {:>6} {:>8}  {}"


class NamedFolder(click.ParamType[tuple[str, Path]]):
    """NAME=FOLDER. An environment variable may hold several, with semicolons between."""

    name = "NAME=FOLDER"
    envvar_list_splitter = ";"

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, Path]:
        """The name and the folder."""
        name, equals, folder = str(value).partition("=")
        if not (name and equals and folder):
            self.fail(
                f"expected a name, = and a folder of PEFT's, such as fr=adapters/french, not {value!r}", param, ctx
            )
        return name, Path(folder)


def in_repository(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which repository is meant."""
    for option in (
        click.option("--config", type=click.Choice(list(CONFIGS)), default="cpu", help="How CHECKPOINT was built."),
        click.option("--processor", help="What the base was built with, if it lacks a tokenizer or image processor."),
        click.option("--checkpoint", help="Hub name or folder of the base.  [default: the repository's, or the demo]"),
        click.option(
            "--repository", help="Model repository.  [default: that of the checkpoint in ~/.cache/blipstream]"
        ),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Add adapters to a model repository, list and remove them. A running server follows at its next request.

    An adapter is what LoRA has trained on top of a checkpoint, its base, such as another language. A request asks for
    it by name.
    """


@main.command()
@click.argument("adapters", metavar="NAME=FOLDER...", type=NamedFolder(), nargs=-1, required=True)
@click.option("--language", help="Tag of BCP 47, such as pt-BR.  [default: the one that the adapter names]")
@in_repository
def add(adapters: tuple[tuple[str, Path], ...], language: str | None, **where: Any) -> None:  # noqa: ANN401
    """Convert adapters of PEFT's, compare them with PEFT, and install them.

    FOLDER is what PEFT's save_pretrained() has written over the base. If NAME is there already, it is replaced.
    """
    with command_line.ending_in_one_sentence("build"):
        found = install.find_adapters(adapters)
        base, repository = _places(**where)
        install.add(repository, found, base, language, signals.interrupt_on_signals)
        click.echo("a running server serves what is there from the next request on")


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with revisions and metrics.")
@in_repository
def list_(as_json: bool, **where: Any) -> None:  # noqa: ANN401
    """List the adapters of a repository."""
    with command_line.ending_in_one_sentence("build"):
        _, repository = _places(**where)
        settings = CheckpointConfig.load(repository / DECODER)
        found = install.installed(repository)
        if as_json:
            rows = [
                {"name": each.name, "size": each.size, "fault": each.fault(settings)}
                | (asdict(each.config) if each.config else {})
                for each in found
            ]
            click.echo(json.dumps(rows, indent=2))
            return
        if not found:
            click.echo(f"{repository} has no adapters")
            return
        click.echo(COLUMNS.format("name", "language", "words", "size", "base"))
        for each in found:
            language = words = base = "?"
            if each.config:
                language, words = each.config.language or "-", str(each.config.num_words)
                base = f"{each.config.base}@{each.config.base_revision[:12]}"
            fault = f"  ({each.fault(settings)})" if each.fault(settings) else ""
            click.echo(COLUMNS.format(each.name, language, words, f"{each.size / 1e6:.1f} MB", base + fault))


@main.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@in_repository
def remove(names: tuple[str, ...], **where: Any) -> None:  # noqa: ANN401
    """Remove adapters. Requests that run keep theirs."""
    with command_line.ending_in_one_sentence("build"):
        _, repository = _places(**where)
        install.remove(repository, names)
        click.echo(f"removed {', '.join(names)} from {repository}")


def _places(repository: str | None, checkpoint: str | None, processor: str | None, config: str) -> tuple[Base, Path]:
    """The base, and the repository."""
    base = Base(checkpoint, processor)
    return base, command_line.repository_folder(repository) or base.repository(config)
