# SPDX-License-Identifier: Apache-2.0
"""The command `evaluate`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from blipstream_client._cli_options import (
    DEFAULTS,
    IMAGE_OPTIONS,
    Decorator,
    caption_options_over,
    client_options,
    connection_options,
    max_in_flight_option,
    rerank_options,
)
from blipstream_client._client import Client
from blipstream_client._client_command import ClientCommand
from blipstream_client._notices import hint, say
from blipstream_client._rerank_options import RerankOptions
from blipstream_client.bulk import job
from blipstream_client.bulk.items import counted
from blipstream_client.bulk.sinks import open_sink
from blipstream_client.bulk.sources import Sources
from blipstream_client.evaluate.annotations import Annotated, read_annotations
from blipstream_client.evaluate.asking import PAPER, caption, over_paper, sources_of
from blipstream_client.evaluate.captions import read_captions
from blipstream_client.evaluate.compare import differences
from blipstream_client.evaluate.output import print_comparison, print_scores
from blipstream_client.evaluate.run import check_tools, gather, scored
from blipstream_client.evaluate.scores import check_replaceable, load
from blipstream_client.evaluate.tokens import ENGLISH, PTB, tokenization_of

SUFFIX = ".parquet"
ALL = "all"

RUN_OPTIONS: Sequence[Decorator] = [
    click.option("--annotations", help="A file with the references of each image.  [default: no references]"),
    click.option("--images", help="The folder of the images, for a server to caption.  [default: none]"),
    click.option("--captions", help="Captions that exist: of `blipstream bulk`, or COCO's results.  [default: none]"),
    click.option("--output", default="scores.parquet", show_default=True, help="The scores of each image, as Parquet."),
    click.option("--split", help="Of annotations that have several.  [default: test]"),
    click.option("--by-domain", is_flag=True, help="Score each domain of NoCaps by itself, too."),
    click.option("--language", help="Of the captions, which says how to count words.  [default: the adapter's, or en]"),
    click.option("--spice", is_flag=True, help="SPICE, too. It downloads Stanford CoreNLP, and needs 8 GB of memory."),
    click.option("--compare", nargs=2, metavar="FIRST SECOND", help="Only compare two runs' scores.  [default: none]"),
    click.option("--json", "as_json", is_flag=True, help="One JSON object, with all names of images left out."),
    max_in_flight_option(job.DEFAULT_MAX_IN_FLIGHT),
]


@click.command(cls=ClientCommand, epilog=DEFAULTS)
@client_options(RUN_OPTIONS, connection_options(job.DEFAULT_TIMEOUT, job.DEFAULT_RETRIES), IMAGE_OPTIONS)
@rerank_options
@caption_options_over(PAPER)
def evaluate(
    annotations: str | None,
    images: str | None,
    captions: str | None,
    output: str,
    split: str | None,
    by_domain: bool,
    language: str | None,
    spice: bool,
    compare: tuple[str, str] | None,
    as_json: bool,
    max_in_flight: int,
    connection: dict[str, Any],
    **options: Any,  # noqa: ANN401
) -> None:
    """Print BLEU, METEOR, ROUGE-L and CIDEr of captions, and write the scores of each image.

    A server captions the images as the paper does. If the command is interrupted, run it again: it goes on where it
    ended. Without annotations, it prints what captions are like: how they match, repeat themselves and each other.
    """
    if compare is not None:
        _only_compare()
        print_comparison(compare, *differences(*map(load, compare)), as_json)
        return
    if (images is None) == (captions is None):
        raise click.UsageError("Give --images for a server to caption, --captions that there are, or --compare")
    if captions is not None and (given := [name for name, value in options.items() if value is not None]):
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for new captions: leave it or --captions out")
    if annotations is None and (split is not None or by_domain or spice):
        raise click.UsageError("--split, --by-domain and --spice need --annotations")
    if not output.endswith(SUFFIX):
        raise click.UsageError(f"--output must end in {SUFFIX}, not {output!r}")
    if options["adapter"] and language is None:
        language = _language_of(options["adapter"], connection)
    tokenization = tokenization_of(language or ENGLISH)
    if spice and tokenization != PTB:
        raise click.UsageError("--spice is for English: leave it or --language out")
    check_tools(tokenization, has_references=annotations is not None, with_spice=spice)
    if captions is not None and Path(captions).resolve() == Path(output).resolve():
        raise click.UsageError(f"--output would replace the captions in {captions}: name another file")
    check_replaceable(output)
    open_sink(output)  # raises InvalidRequest if there is no folder for it
    annotated = None if annotations is None else read_annotations(annotations, split)
    domains = sorted({each.domain for each in annotated or ()} - {""}) if by_domain else []
    if by_domain and not domains:
        raise click.UsageError(f"--by-domain is for NoCaps: the images in {annotations} have no domain")
    if captions is None:
        captions = f"{output.removesuffix(SUFFIX)}.captions{SUFFIX}"
        _ask(images or "", annotations, split, annotated, captions, over_paper(options), connection, max_in_flight)
    found = gather(annotated, read_captions(captions))
    hint("Scoring. METEOR takes a quarter of a minute to start.")
    scores, figures = scored(found.rows, tokenization, with_spice=spice)
    columns = {ALL: figures}
    for domain in domains:
        rows = [row for row in found.rows if row.domain == domain]
        columns[domain] = scored(rows, tokenization, with_spice=spice)[1] if rows else {}
    scores.save(Path(output))
    print_scores(found, columns, tokenization, as_json)
    hint(f"Next: blipstream evaluate --compare {output} OTHER{SUFFIX}")
    sys.exit(1 if any(found.left_out.values()) else 0)


def _language_of(adapter: str, connection: dict[str, Any]) -> str:
    """The language that the server says of an adapter. One that is not there is refused by the first image.

    Raises click.UsageError if nobody said it, and BlipstreamError as `Client.info` does.
    """
    with Client(**connection) as client:
        languages = {each.name: each.language for each in client.info().adapters}
    if not languages.get(adapter, ENGLISH):
        raise click.UsageError(f"--language is needed, as the server does not know that of the adapter {adapter}")
    return languages.get(adapter, ENGLISH)


def _ask(
    folder: str,
    annotations: str | None,
    split: str | None,
    annotated: Sequence[Annotated] | None,
    output: str,
    options: RerankOptions,
    connection: dict[str, Any],
    max_in_flight: int,
) -> None:
    """Caption the images of the folder, or those that are annotated."""
    described = {"annotations": annotations, "split": split, "images": folder}
    wanted = annotated and [each for each in annotated if each.references]
    sources = Sources([folder]) if wanted is None else sources_of(folder, wanted, described)
    logging.getLogger("blipstream_client").setLevel(logging.ERROR)  # a run itself says whom it waits for
    summary = caption(
        sources,
        output,
        connection["model"],
        options,
        with_match=annotated is None and not options.get("adapter"),
        connection=connection,
        max_in_flight=max_in_flight,
    )
    if summary.failures:
        say(f"{counted(summary.failures, 'image')} cannot be captioned; {summary.first_failure}")


def _only_compare() -> None:
    """Raise UsageError if there is an option that --compare does not have."""
    context = click.get_current_context()
    for name in context.params:
        if name not in ("compare", "as_json") and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--compare compares scores that there are: leave --{name.replace('_', '-')} out")
