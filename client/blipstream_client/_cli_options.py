# SPDX-License-Identifier: Apache-2.0
"""The flags that several commands share: the options of a caption, and the arguments of `Client`."""

import functools
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from blipstream_client._base import API_KEY, DEFAULT_MODEL, DEFAULT_URL, BaseClient
from blipstream_client._explain_options import EXPLAIN_OPTIONS
from blipstream_client._options import OPTIONS, Option
from blipstream_client._rerank_options import RERANK_OPTIONS

Command = Callable[..., None]
Decorator = Callable[[Command], Command]

FILE = click.Path(dir_okay=False)
DEFAULTS = (  # the end of --help
    "The defaults of options such as --max-tokens are the built-in ones. A server may have others: `blipstream info`."
)

IMAGE_OPTIONS: Sequence[Decorator] = [
    click.option(
        "--max-side",
        type=int,
        help="Scale larger images down to so many pixels before they are sent.  [default: as they are]",
    ),
    click.option("--allow-private-urls", is_flag=True, help="Fetch images from private networks, too."),
]


def caption_options(command: Command) -> Command:
    """Add a flag for each option of a caption."""
    return _with_flags(command, OPTIONS)


def rerank_options(command: Command) -> Command:
    """Add a flag for each option of the choice among captions."""
    return _with_flags(command, RERANK_OPTIONS)


def caption_options_over(defaults: Mapping[str, Any]) -> Decorator:
    """The same, where the command has other defaults."""
    known = {name: replace(option, default=defaults.get(name, option.default)) for name, option in OPTIONS.items()}
    return lambda command: _with_flags(command, known)


def explain_options(command: Command) -> Command:
    """Add a flag for each option of an explanation, and of its caption."""
    return _with_flags(command, {**EXPLAIN_OPTIONS, **OPTIONS})


def _with_flags(command: Command, options: Mapping[str, Option]) -> Command:
    for name, option in reversed([*options.items()]):
        flag = name.replace("_", "-")
        is_switch = option.type.python is bool
        declaration = f"--{flag}/--no-{flag}" if is_switch else f"--{flag}"
        add = click.option(declaration, type=option.type.python, default=None, help=option_help(name, option))
        command = add(command)
    return command


def option_help(name: str, option: Option) -> str:
    """The option's help, with the built-in default, which click does not know: nothing is sent for it."""
    match option.default:
        case "":
            shown = "none"
        case bool():
            shown = f"{'' if option.default else 'no-'}{name.replace('_', '-')}"
        case _:
            shown = f"{option.default}"
    return f"{option.help}  [default: {shown}]"


def connection_options(timeout: float, retries: int, *, has_model: bool = True) -> Sequence[Decorator]:
    """Flags for the arguments of `Client` that concern the connection, with these defaults.

    Without --model if the command has but one that it can ask.
    """
    model = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="The server's name for the model.")
    return [
        click.option(
            "--url",
            envvar="BLIPSTREAM_URL",
            default=DEFAULT_URL,
            show_default=True,
            show_envvar=True,
            help="The server. Several take turns: grpc://a:8001,b:8001.",
        ),
        *([model] if has_model else []),
        click.option("--timeout", default=timeout, show_default=True, help="Seconds for an image, with all retries."),
        click.option(
            "--retries",
            default=retries,
            show_default=True,
            help="If the server is overloaded, or it or a URL cannot be reached.",
        ),
        click.option(
            "--header",
            "headers",
            multiple=True,
            metavar="NAME:VALUE",
            callback=_headers,
            help=f"Sent with requests.  [default: authorization:Bearer KEY, with the key in {API_KEY}, if it is set]",
        ),
        click.option("--ca-file", type=FILE, help="TLS: certificates to trust.  [default: the well-known ones]"),
        click.option("--cert-file", type=FILE, help="TLS: the client's own certificate.  [default: none]"),
        click.option("--key-file", type=FILE, help="TLS: its key.  [default: in the same file]"),
        click.option(
            "--keepalive",
            type=float,
            help="Seconds of silence before a connection is checked.  [default: a third of --timeout]",
        ),
    ]


def max_in_flight_option(default: int) -> Decorator:
    """The option that says how many requests may run at once."""
    return click.option(
        "--max-in-flight",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Requests at once, if the server takes as many.",
    )


def client_options(*groups: Sequence[Decorator]) -> Decorator:
    """Add flags whose values the command gets as one argument `connection`: the arguments of `Client`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(**arguments: Any) -> None:  # noqa: ANN401
            names = inspect.signature(BaseClient).parameters.keys() & arguments.keys()
            command(connection={name: arguments.pop(name) for name in names}, **arguments)

        decorated: Command = collect
        for option in reversed([option for group in groups for option in group]):
            decorated = option(decorated)
        return decorated

    return decorate


def _headers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition(":") for value in values]
    if wrong := [name for name, colon, _ in pairs if not colon]:
        raise click.BadParameter(f"expected NAME:VALUE, got {wrong[0]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def check_picture(flag: str, name: str, suffixes: Sequence[str]) -> None:
    """Raise UsageError unless a picture of these kinds can be written to a file that a flag names."""
    path = Path(name)
    if path.suffix.lower() not in suffixes:
        raise click.UsageError(f"{flag} must end in {' or '.join(', '.join(suffixes).rsplit(', ', 1))}, not {name!r}")
    if not path.parent.is_dir():
        make = shlex.join(["mkdir", "-p", str(path.parent)])
        raise click.UsageError(f"There is no folder {path.parent}: make it by `{make}`, or use another {flag}")
