# SPDX-License-Identifier: Apache-2.0
"""The commands that ask about any number of images: `bulk`, `embed` and `filter`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click

from blipstream_client._cli_options import (
    DEFAULTS,
    IMAGE_OPTIONS,
    Decorator,
    caption_options,
    caption_options_over,
    client_options,
    connection_options,
    max_in_flight_option,
    option_help,
    rerank_options,
)
from blipstream_client._client_command import ClientCommand, several_names
from blipstream_client._notices import hint, say
from blipstream_client._options import OPTIONS, Options
from blipstream_client._rerank_options import RerankOptions
from blipstream_client.bulk import job
from blipstream_client.bulk.caption import CaptionTask
from blipstream_client.bulk.embed import EmbedTask
from blipstream_client.bulk.errors import translated
from blipstream_client.bulk.filter import CAPFILT, MIN_MATCH, FilterTask
from blipstream_client.bulk.items import counted
from blipstream_client.bulk.pairs import AdapterSources, PairSources
from blipstream_client.bulk.parquet import COLUMNS, TEXT_COLUMNS
from blipstream_client.bulk.report import Reader, write_report
from blipstream_client.bulk.sinks import reading
from blipstream_client.bulk.sources import STANDARD_INPUT, Sources
from blipstream_client.bulk.task import SummaryT, Task

RUN_OPTIONS: Sequence[Decorator] = [
    click.option("--output", required=True, help="A file that ends in .parquet, .jsonl or .csv."),
    click.option(
        "--column",
        help=f"Where Parquet files have images, URLs, base64 or paths.  [default: the first of {', '.join(COLUMNS)}]",
    ),
    click.option("--allow-local-paths", is_flag=True, help="Read any files of this machine that tables name."),
    max_in_flight_option(job.DEFAULT_MAX_IN_FLIGHT),
]
FILTER_OPTIONS: Sequence[Decorator] = [
    click.option("--text-column", help=f"Where tables have texts.  [default: the first of {', '.join(TEXT_COLUMNS)}]"),
    click.option(
        "--min-match",
        type=float,
        help=f"The match that a text must have.  [default: the server's threshold if it is calibrated, or {MIN_MATCH}]",
    ),
    click.option(
        "--replace", is_flag=True, help="Replace what fails by a caption that does not, drawn as CapFilt does."
    ),
    click.option("--truncate/--no-truncate", default=None, help="Cut texts that are too long.  [default: an error]"),
    click.option("--report", help="An HTML file with counts, a histogram and examples.  [default: none]"),
]
CONNECTION_OPTIONS = connection_options(job.DEFAULT_TIMEOUT, job.DEFAULT_RETRIES, has_model=False)


@click.command(cls=ClientCommand, epilog=DEFAULTS)
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True, callback=several_names)
@client_options(RUN_OPTIONS, connection_options(job.DEFAULT_TIMEOUT, job.DEFAULT_RETRIES), IMAGE_OPTIONS)
@click.option(
    "--adapter-column",
    help="Where tables say each image's adapter; empty: none. They may be CSV and JSON lines, too.  [default: none]",
)
@rerank_options
@caption_options
def bulk(
    images: tuple[str, ...],
    output: str,
    column: str | None,
    allow_local_paths: bool,
    max_in_flight: int,
    connection: dict[str, Any],
    adapter_column: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Write a row for each of IMAGES to a file.

    IMAGES are folders, files, URLs, patterns in quotes, tar shards, Parquet files, or - for a list of such names on
    standard input. If the command is interrupted, run it again: it goes on where it ended.
    """
    if adapter_column is not None and options["adapter"] is not None:
        raise click.UsageError("--adapter is for all images and --adapter-column for each: leave one out")
    sources = Sources(images, column, allow_local_paths)
    if adapter_column is not None:
        sources = AdapterSources(images, column, allow_local_paths, text_column=adapter_column)
    task = CaptionTask(connection["model"], cast(RerankOptions, options), adapters=adapter_column is not None)
    summary = _run(task, sources, output, connection, max_in_flight)
    sys.exit(1 if summary.failures else 0)


@click.command(cls=ClientCommand)
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True, callback=several_names)
@client_options(RUN_OPTIONS, CONNECTION_OPTIONS, IMAGE_OPTIONS)
@click.option("--resize-mode", help=option_help("resize_mode", OPTIONS["resize_mode"]))
def embed(
    images: tuple[str, ...],
    output: str,
    column: str | None,
    allow_local_paths: bool,
    max_in_flight: int,
    connection: dict[str, Any],
    resize_mode: str | None,
) -> None:
    """Write an embedding of each of IMAGES to a file, for search.

    IMAGES are as for `blipstream bulk`. The server needs a retrieval checkpoint, such as
    Salesforce/blip-itm-base-coco. If the command is interrupted, run it again: it goes on where it ended.
    """
    summary = _run(
        EmbedTask(resize_mode), Sources(images, column, allow_local_paths), output, connection, max_in_flight
    )
    sys.exit(1 if summary.failures else 0)


@click.command(cls=ClientCommand)
@click.argument("pairs", metavar="PAIRS...", nargs=-1, required=True, callback=several_names)
@client_options(RUN_OPTIONS, FILTER_OPTIONS, CONNECTION_OPTIONS, IMAGE_OPTIONS)
@caption_options_over(CAPFILT)
def filter(  # noqa: A001
    pairs: tuple[str, ...],
    output: str,
    column: str | None,
    allow_local_paths: bool,
    max_in_flight: int,
    connection: dict[str, Any],
    text_column: str | None,
    min_match: float | None,
    replace: bool,
    truncate: bool | None,
    report: str | None,
    resize_mode: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Write a row for each pair of an image and a text, with a verdict: kept, replaced or dropped.

    PAIRS are Parquet, CSV and JSON-lines files, folders with a .txt file beside each image or a metadata.jsonl, tar
    shards with a .txt or .json file beside each image, or - for a list of such names on standard input. The options of
    captions are for --replace. If the command is interrupted, run it again: it goes on where it ended.
    """
    if given := [name for name, value in options.items() if value is not None and not replace]:
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for new captions: give --replace, too")
    if report is not None:
        _check_report(report, pairs)
    sources = PairSources(pairs, column, allow_local_paths, text_column=text_column)
    replacing = cast(Options, {**options, "resize_mode": resize_mode}) if replace else None
    task = FilterTask(min_match, replacing=replacing, truncate=truncate, resize_mode=resize_mode)
    summary = _run(task, sources, output, connection, max_in_flight)
    if report is not None:
        with translated(f"Cannot write {report}", OSError), Reader(**connection) as reader:
            write_report(Path(report), summary, output, task.min_match, sources, reader)
        say(f"report: {report}")
    sys.exit(1 if summary.failures else 0)


def _check_report(report: str, pairs: Sequence[str]) -> None:
    """Raise UsageError unless the report can be written."""
    if not report.endswith(".html"):
        raise click.UsageError(f"--report must end in .html, not {report!r}")
    if not Path(report).parent.is_dir():
        raise click.UsageError(f"There is no folder {Path(report).parent}: make it, or use another --report")
    if STANDARD_INPUT in pairs:
        raise click.UsageError("--report reads images again, and - can be read once: give their names as arguments")


def _run(
    task: Task[SummaryT], sources: Sources, output: str, connection: dict[str, Any], max_in_flight: int
) -> SummaryT:
    """Run the task, and sum up."""
    logging.getLogger("blipstream_client").setLevel(logging.ERROR)  # a run itself says whom it waits for
    summary = job.run(task, sources, output, connection=connection, max_in_flight=max_in_flight)
    say(f"{counted(summary.rows, 'row')} in {output}, {summary.found:,} of them from before")
    if summary.outcome:
        say(summary.outcome)
    if summary.left_out:
        say(summary.left_out)
    if summary.failures:
        say(f"{summary.failures:,} have an error instead of {task.result}; {summary.first_failure}")
    hint(f"Next: {reading(output)}")
    return summary
