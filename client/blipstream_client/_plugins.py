# SPDX-License-Identifier: Apache-2.0
"""Commands of `blipstream` that other packages provide, as entry points of the group `blipstream.commands`.

An entry point's object is a click command. It is imported only when it is run: the server's import torch.
"""

import signal
from importlib.metadata import EntryPoint, entry_points

import click

from blipstream_client._notices import Failure
from blipstream_client._text import LONGEST_SENTENCE, excerpt

GROUP = "blipstream.commands"
INSTALL = "made by `make wheels` in a checkout (docs/quickstart.md)"
SERVER_COMMANDS = {  # of the package `blipstream`, with their help, which is to be shown without importing them
    "demo": "Caption sample images through a server, and show them.",
    "serve": "Serve captions from a checkpoint.",
    "build": "Convert a checkpoint to a model repository.",
    "adapter": "Add adapters to a model repository, list and remove them.",
    "finetune": "Teach a captioner from your images and captions.",
    "calibrate": "Fit matching to pairs that you labelled.",
    "bench": "Measure throughput and latency against transformers.",
    "loadtest": "Put a server under load, and say how many machines you need.",
    "tune": "Find the batching settings that suit this machine.",
    "proxy": "Let others ask your server: TLS, keys and limits.",
    "monitoring": "Write the files that Prometheus and Grafana need.",
}


def installed() -> dict[str, EntryPoint]:
    """The entry points by the command's name."""
    return {each.name: each for each in entry_points(group=GROUP)}


def help_lines() -> tuple[dict[str, str], dict[str, str]]:
    """Names and one line each, of installed commands and of the server's that are not installed."""
    found = installed()
    server = {name: line for name, line in SERVER_COMMANDS.items() if name in found}
    others = {
        name: f"From the package {_package(found[name])}." for name in sorted(found.keys() - SERVER_COMMANDS.keys())
    }
    return server | others, {name: line for name, line in SERVER_COMMANDS.items() if name not in found}


def load(name: str) -> click.Command | None:
    """The command, or None if there is none of this name. Raises Failure if it is not installed, or broken."""
    entry_point = installed().get(name)
    if entry_point is None:
        if name in SERVER_COMMANDS:
            raise Failure(f"blipstream {name} needs the server's package, {INSTALL}")
        return None
    try:
        command = entry_point.load()
    except Exception as exc:  # importing runs any code
        reason = excerpt(exc, LONGEST_SENTENCE) or type(exc).__name__
        raise Failure(f"Cannot load blipstream {name} from the package {_package(entry_point)}: {reason}") from exc
    if not isinstance(command, click.Command):
        raise Failure(
            f"Expected a click command in {entry_point.value} of the package {_package(entry_point)},"
            f" got {type(command).__name__}"
        )
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by __main__ for the time of the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else "?"
