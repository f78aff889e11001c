# SPDX-License-Identifier: Apache-2.0
"""`blipstream demo`. What is slow to import is imported once the options have been read."""

import json
from contextlib import ExitStack
from pathlib import Path

import click

from blipstream import command_line, signals
from blipstream.errors import BlipstreamError
from blipstream.files import DEMO_ADAPTERS, DEMO_RETRIEVAL_CHECKPOINT, SAMPLES

TEXTS = ("two butterflies", "a trophy above a whale", "a dog above a door", "a door above a dog")


# BLIPSTREAM_REPOSITORY names what somebody serves, and the demo must not be built there
@click.command(context_settings=command_line.SETTINGS | {"auto_envvar_prefix": None})
@click.option(
    "--repository",
    help="Model repository to build the demo's two checkpoints into.  [default: a folder of ~/.cache/blipstream]",
)
@click.option(
    "--sheet",
    type=command_line.OutputFile(),
    default=Path("demo.png"),
    help="The picture to write: the images with their captions.",
)
@click.option(
    "--heatmaps",
    type=command_line.OutputFile(),
    default=Path("demo-heatmaps.png"),
    help="The second picture: where the model looked for each word of one caption.",
)
@click.option(
    "--search",
    "found_sheet",
    type=command_line.OutputFile(),
    default=Path("demo-search.png"),
    help="The third picture: the images that a few texts found.",
)
def main(repository: str | None, sheet: Path, heatmaps: Path, found_sheet: Path) -> None:
    """Caption, explain and search the sample images through a real Triton server, and show them.

    Builds the demo's captioner, its adapters for other languages and its retrieval checkpoint unless they are up to
    date, starts a server on free ports, asks it over gRPC and over HTTP, and stops it. The exit status is 0 only if
    every caption is right over both.
    """
    with command_line.ending_in_one_sentence("cpu"):
        run(command_line.repository_folder(repository), sheet, heatmaps, found_sheet)


def run(repository: Path | None, sheet: Path, heatmaps: Path, found_sheet: Path) -> None:
    """Build, serve, ask and show. Raises BlipstreamError if there is no answer, or a wrong one."""
    from rich.console import Console

    from blipstream.server import checkpoint
    from blipstream.server.network import bypass_proxies
    from blipstream.server.triton import TritonServer
    from blipstream_client import BlipstreamError as ClientError
    from blipstream_demo.answers import (
        ask,
        explain_longest,
        is_right,
        language_table,
        search,
        search_table,
        table,
        translate_longest,
    )
    from blipstream_demo.contact_sheet import contact_sheet, save_sheet, search_sheet
    from blipstream_demo.heatmaps import save_heatmaps

    signals.interrupt_on_signals()
    bypass_proxies()
    expected: dict[str, str] = json.loads((SAMPLES / "captions.json").read_text(encoding="utf-8"))
    files = [SAMPLES / name for name in expected]
    adapters = sorted(each.parent for each in DEMO_ADAPTERS.glob("*/blipstream.json"))
    built = checkpoint.build(None, "cpu", repository, adapters=[f"{each.name}={each}" for each in adapters])
    checkpoint.build(str(DEMO_RETRIEVAL_CHECKPOINT), "cpu", built)
    server = TritonServer(repository=built, config="cpu", http_port=0, grpc_port=0, metrics_port=0)
    try:
        click.echo("starting Triton, which takes about ten seconds")
        with ExitStack() as stack:
            stack.callback(server.stop)
            server.start()
            server.wait_ready(server.ready_timeout, _say_that_it_loads)
            click.echo(f"captioning {len(files)} images over gRPC, and again over HTTP")
            over_grpc, over_http = ask(server.grpc_url, files), ask(server.http_url, files)
            save_heatmaps(explain_longest(server.grpc_url, files, over_grpc), heatmaps)
            found = search(server.grpc_url, files, TEXTS)
            translations = translate_longest(server.grpc_url, files, over_grpc, [each.name for each in adapters])
    except ClientError as exc:
        raise BlipstreamError(str(exc)) from exc
    Console().print(table(expected, over_grpc, over_http), language_table(translations), search_table(found))
    save_sheet(contact_sheet(files, over_grpc), over_grpc, sheet)
    click.echo(f"images and captions: {sheet}")
    click.echo(f"heatmaps of a caption: {heatmaps}")
    search_sheet(found).save(found_sheet, "PNG", optimize=True)
    click.echo(f"images that texts found: {found_sheet}")
    right = sum(is_right(answers[name], expected[name]) for answers in (over_grpc, over_http) for name in expected)
    if right < 2 * len(expected):
        raise BlipstreamError(f"{2 * len(expected) - right} of {2 * len(expected)} captions are not the expected ones")
    click.echo(f"next: {command_line.command('serve')}")


def _say_that_it_loads(seconds: float) -> None:
    if seconds:
        click.echo(f"models are still loading, after {seconds:.0f} seconds")
