# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder share on the command line."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

import mix

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "loadtest" / "results"
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def repository(what: str) -> Decorator:
    """--repository, and what is done with it."""
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
    help="What is asked for.",
)
NAME: Decorator = click.option("--name", help="Of the folder with the results; by default the time.")
OUTPUT: Decorator = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    show_default="loadtest/results",
    help="Where that folder is made.",
)


def stop_on_signals() -> None:
    """Have Ctrl-C and SIGTERM end the program quietly, with what it started, and neither interrupt that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
