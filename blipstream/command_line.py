# SPDX-License-Identifier: Apache-2.0
"""What our commands share: settings, options for what they write, how they name each other, how they print an error."""

import ipaddress
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from blipstream import signals
from blipstream.errors import BlipstreamError
from blipstream.extras import missing
from blipstream.files import DEMO_CHECKPOINT, MODEL_REPOSITORY

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "auto_envvar_prefix": "BLIPSTREAM",
}
BY_ENVIRONMENT = "Each option is an environment variable, too, such as {}."
WIDTH = 80  # columns
MAKES_NAMES = {"p95-ms": "SLO_P95_MS"}  # where they are not the options' own, in capitals
CALLED_AS = "BLIPSTREAM_CALLED_AS"  # the Makefile sets it to "make"


class Host(click.ParamType[str]):
    """A name or an IP address, which may stand in a configuration file."""

    name = "HOST"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The host, an address in its shortest form. What ends in a number, as 999.9.9.9 does, is no name."""
        with suppress(ValueError):
            if "%" not in value:  # what follows it may be anything
                return str(ipaddress.ip_address(value))
        if not re.fullmatch(r"(?!(.*\.)?\d+\.?$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", value):
            self.fail(f"a host is a name such as triton.example, or an IP address, which {value!r} is not", param, ctx)
        return value


class OutputFile(click.Path):
    """A file to write. Its folder must be there, which is better known now than when the content has been made."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        """The path."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        folder = path.absolute().parent
        if not folder.is_dir():
            make = shlex.join(["mkdir", "-p", str(path.parent)])
            self.fail(f"there is no folder {path.parent}: make it by `{make}`, or choose another", param, ctx)
        if not path.exists() and not os.access(folder, os.W_OK):
            self.fail(f"the folder {path.parent} cannot be written: choose another", param, ctx)
        return path


class OutputFolder(click.Path):
    """A folder to write into, which is made later if it is missing. Whether it can be is better known now."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        """The path."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            self.fail(f"{path} cannot be made, since {relative(there)} is no folder that can be written", param, ctx)
        return path


def command(verb: str, checkpoint: str | None = None, **options: object) -> str:
    """A command line of ours, in the words of whoever called us: `blipstream VERB`, or `make VERB`.

    Options that are None are left out, and for make what is its default.
    """
    given = {name: str(value) for name, value in options.items() if value is not None}
    if not called_by_make():
        words = [program(), verb, *([checkpoint] if checkpoint else [])]
        words += [word for name, value in given.items() for word in (f"--{name}", value)]
        return shlex.join(words)
    given = ({"checkpoint": checkpoint} if checkpoint else {}) | given
    defaults = {"checkpoint": DEMO_CHECKPOINT, "repository": MODEL_REPOSITORY}
    changed = {
        name: value
        for name, value in given.items()
        if not (name in defaults and Path(value).absolute() == defaults[name])
    }
    return shlex.join(["make", verb, *(f"{name.upper()}={value}" for name, value in changed.items())])


def option(name: str, value: str = "") -> str:
    """An option of ours in the words of whoever called us: --NAME VALUE, or NAME=VALUE for make."""
    if called_by_make():
        return f"{MAKES_NAMES.get(name, name.upper().replace('-', '_'))}={value}"
    return f"--{name} {value}".rstrip()


def address(host: str, port: int) -> str:
    """HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def called_by_make() -> bool:
    """Whether the user typed make, and not our program's name."""
    return os.environ.get(CALLED_AS) == "make"


def program() -> str:
    """How to call the program `blipstream` of this environment from the working folder."""
    installed = Path(sys.prefix, "bin", "blipstream")
    found = shutil.which("blipstream")
    if not installed.exists() or (found and Path(found).absolute() == installed):
        return "blipstream"
    return str(relative(installed))


def relative(path: Path) -> Path:
    """A path as seen from the working folder, if it lies within."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def repository_folder(given: str | None) -> Path | None:
    """The folder of the option --repository. Raises BlipstreamError if it is empty: it would be the working folder."""
    if given == "":
        raise BlipstreamError(f"{option('repository')} is empty: give the name of a folder, or leave it out")
    return None if given is None else Path(given)


@contextmanager
def ending_in_one_sentence(extra: str) -> Iterator[None]:
    """Handle stop signals, and end the command in one sentence if one comes or something fails inside the block.

    `extra` is that of our package which brings a module that is not installed.
    """
    with signals.handled():
        try:
            yield
        except (Exception, KeyboardInterrupt) as exc:
            if signals.stopping.is_set():  # whatever a library made of it
                click.echo(signals.GOODBYE, err=True)
                sys.exit(signals.STATUS)
            if isinstance(exc, ModuleNotFoundError):
                fail(missing(exc.name, extra))
            if not isinstance(exc, BlipstreamError | OSError):
                raise
            fail(exc)


def fail(error: object) -> NoReturn:
    """Print an error as click does, but in lines that fit a terminal, and exit with status 1."""
    click.echo(fill(f"Error: {error}"), err=True)
    sys.exit(1)


def fill(sentence: str) -> str:
    """Break a sentence into lines of at most WIDTH columns. A path or an address stays whole."""
    return textwrap.fill(sentence, WIDTH, break_long_words=False, break_on_hyphens=False)
