# SPDX-License-Identifier: Apache-2.0
"""The commands that ask about any number of images: `bulk`."""

import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import click

from blipstream_client._cli_options import (
    DEFAULTS,
    IMAGE_OPTIONS,
    Decorator,
    caption_options,
    client_options,
    connection_options,
)
from blipstream_client._client_command import ClientCommand, several_names
from blipstream_client._notices import hint, say
from blipstream_client._options import Options
from blipstream_client.bulk import job
from blipstream_client.bulk.caption import CaptionTask
from blipstream_client.bulk.items import counted
from blipstream_client.bulk.parquet import COLUMNS
from blipstream_client.bulk.sinks import reading
from blipstream_client.bulk.sources import Sources
from blipstream_client.bulk.task import Task

RUN_OPTIONS: Sequence[Decorator] = [
    click.option("--output", required=True, help="A file that ends in .parquet, .jsonl or .csv."),
    click.option(
        "--column",
        help=f"Where Parquet files have images, URLs, base64 or paths.  [default: the first of {', '.join(COLUMNS)}]",
    ),
    click.option("--allow-local-paths", is_flag=True, help="Read files of this machine that Parquet files name, too."),
    click.option(
        "--max-in-flight",
        type=click.IntRange(1),
        default=job.DEFAULT_MAX_IN_FLIGHT,
        show_default=True,
        help="Requests at once, if the server takes as many.",
    ),
]


@click.command(cls=ClientCommand, epilog=DEFAULTS)
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True, callback=several_names)
@client_options(RUN_OPTIONS, connection_options(job.DEFAULT_TIMEOUT, job.DEFAULT_RETRIES), IMAGE_OPTIONS)
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
    task = CaptionTask(connection["model"], cast(Options, options))
    _run(task, Sources(images, column, allow_local_paths), output, connection, max_in_flight)


def _run(task: Task, sources: Sources, output: str, connection: dict[str, Any], max_in_flight: int) -> NoReturn:
    """Run the task, sum up, and exit."""
    logging.getLogger("blipstream_client").setLevel(logging.ERROR)  # a run itself says whom it waits for
    summary = job.run(task, sources, output, connection=connection, max_in_flight=max_in_flight)
    say(f"{counted(summary.rows, 'row')} in {output}, {summary.found:,} of them from before")
    if summary.left_out:
        say(summary.left_out)
    if summary.failures:
        say(f"{summary.failures:,} have an error instead of {task.result}; {summary.first_failure}")
    hint(f"Next: {reading(output)}")
    sys.exit(1 if summary.failures else 0)
