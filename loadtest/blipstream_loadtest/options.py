# SPDX-License-Identifier: Apache-2.0
"""Command-line options that load tests, tuning and the programs of loadtest/ share. Imports nothing slow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from blipstream.command_line import OutputFolder
from blipstream.extras import missing
from blipstream.files import MODEL_REPOSITORY

FOLDER = Path(__file__).resolve().parent
MIX_FILE = FOLDER / "mix.yaml"
LOCUSTFILE = FOLDER / "locustfile.py"
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@contextmanager
def importing() -> Iterator[None]:
    """End the command in one sentence if a package is missing that the block imports."""
    try:
        yield
    except ModuleNotFoundError as exc:
        raise click.ClickException(missing(exc.name, "loadtest")) from exc


def repository(what: str) -> Decorator:
    """The option --repository; `what` is its help."""
    return click.option(
        "--repository",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        default=MODEL_REPOSITORY,
        show_default="model_repository",
        help=what,
    )


CHECKPOINT: Decorator = click.argument("checkpoint", required=False)
SERVED: Decorator = click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    help="Model repository to serve; a CHECKPOINT is built there first.  [default: a folder of ~/.cache/blipstream]",
)
CONFIG: Decorator = click.option(
    "--config", default="cpu", help="Runtime: a name in any model's configs/, or tensorrt."
)
MIX: Decorator = click.option(
    "--mix",
    "mix_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=MIX_FILE,
    show_default="mix.yaml beside this program",
    help="YAML file that says what to ask for.",
)
OUTPUT: Decorator = click.option(
    "--output",
    type=OutputFolder(),
    default=Path(),
    show_default="the working folder",
    help="Where to make the folder for the results.",
)


def name(verb: str) -> Decorator:
    """The option --name of the command `verb`."""
    return click.option("--name", help="Name of the folder for the results.", show_default=f"{verb}-DATE-TIME")
