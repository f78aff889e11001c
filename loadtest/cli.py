# SPDX-License-Identifier: Apache-2.0
"""Command-line options that the programs of this folder share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import mix

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "loadtest" / "results"
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def repository(what: str) -> Decorator:
    """The option --repository; `what` is its help."""
    return click.option(
        "--repository",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        default=ROOT / "model_repository",
        show_default="model_repository",
        help=what,
    )


MIX: Decorator = click.option(
    "--mix",
    "mix_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=mix.DEFAULT,
    show_default="loadtest/mix.yaml",
    help="YAML file that says what to ask for.",
)
NAME: Decorator = click.option("--name", help="Name of the folder for the results. Default: the time.")
OUTPUT: Decorator = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    show_default="loadtest/results",
    help="Where to make that folder.",
)
