# SPDX-License-Identifier: Apache-2.0
"""The command line: `blipstream caption photo.jpg`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast

import click

from blipstream_client import BlipstreamError, Caption, Client, ImageLike, Options, __version__
from blipstream_client._client import DEFAULT_URL
from blipstream_client._contract import OPTIONS

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT


def caption_options(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for each option of a caption."""
    for name, option in reversed(OPTIONS.items()):
        flag = name.replace("_", "-")
        switch = option.kind.python is bool
        declaration = f"--{flag}/--no-{flag}" if switch else f"--{flag}"
        command = click.option(declaration, type=option.kind.python, default=None, help=option.help)(command)
    return command


@click.group()
@click.version_option(__version__, prog_name="blipstream")
def main() -> None:
    """Captions for images from a Blipstream server."""


@main.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--url", envvar="BLIPSTREAM_URL", default=DEFAULT_URL, show_default=True, show_envvar=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@caption_options
def caption(images: tuple[str, ...], url: str, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Print a line for each IMAGE, a file or - for standard input."""
    try:
        succeeded = _caption(images, url, as_json, cast(Options, options))
    except BlipstreamError as exc:
        raise click.ClickException(str(exc)) from exc
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0 if succeeded else 1)


def _caption(names: tuple[str, ...], url: str, as_json: bool, options: Options) -> bool:
    """Print what each image gave. True if all gave captions."""
    succeeded = True
    sources: Iterator[ImageLike] = (sys.stdin.buffer if name == "-" else name for name in names)
    with Client(url) as client, closing(client.caption_many(sources, **options)) as results:
        for name, result in zip(names, results, strict=True):
            succeeded = succeeded and not isinstance(result, BlipstreamError)
            _print(click.format_filename(name), result, as_json)
    return succeeded


def _print(name: str, result: Caption | BlipstreamError, as_json: bool) -> None:
    match result, as_json:
        case Caption(), False:
            for each in (result, *result.alternatives):
                click.echo(f"{name}: {each.text}")
        case _, False:
            click.echo(f"{name}: {result}", err=True)
        case Caption(), True:
            _print_json(file=name, **_fields(result))
        case _, True:
            _print_json(file=name, error=str(result))


def _fields(caption: Caption) -> dict[str, Any]:
    """What JSON shows of a caption, and of the alternatives if they were asked for."""
    fields: dict[str, Any] = {"caption": caption.text, "score": caption.score, "num_tokens": caption.num_tokens}
    if caption.alternatives:
        fields["alternatives"] = [_fields(other) for other in caption.alternatives]
    return fields


def _print_json(**fields: Any) -> None:  # noqa: ANN401
    click.echo(json.dumps(fields, ensure_ascii=False))


if __name__ == "__main__":
    main()
