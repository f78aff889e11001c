# SPDX-License-Identifier: Apache-2.0
"""Build the checkpoint that is to be served, in another process, so that the server's own never loads torch."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from blipstream import signals
from blipstream.errors import ServerError

CONFIGS = ("cpu", "cuda", "tensorrt")  # those of the build, which this package must not import


def build(
    checkpoint: str | None,
    config: str,
    repository: Path | None = None,
    processor: str | None = None,
    adapters: Iterable[str] = (),
) -> Path:
    """Build what is stale, as `blipstream build` does with these options, and return the model repository.

    Raises ServerError if there is no such configuration, which the build would tell in terms of its own command line,
    or something kills the build. If the build fails, or Ctrl-C ends it, exits with the build's status: it has said why.
    """
    if config not in CONFIGS:
        choices = ", ".join(CONFIGS)
        raise ServerError(f"no checkpoint is built for configuration {config!r}: choose one of {choices}")
    options = {"config": config, "repository": repository, "processor": processor}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    given += [f"--adapter={adapter}" for adapter in adapters]
    # -P: a file named like a module in the working folder must not take its place
    command = [sys.executable, "-P", "-m", "blipstream_build", "--print-path", *given]
    if checkpoint is not None:
        command += ["--", checkpoint]
    # Ctrl-C reaches this process alone, which passes on that and all other signals
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            path, _ = process.communicate()
        except KeyboardInterrupt:
            process.terminate()  # SIGINT would print a traceback while Python itself starts
            if process.wait() < 0:  # it came too early to be handled
                click.echo(signals.GOODBYE, err=True)
            sys.exit(signals.STATUS)
    if process.returncode < 0:
        raise ServerError(f"the build was ended by signal {-process.returncode}: see that there is enough memory")
    if process.returncode:
        sys.exit(process.returncode)
    return Path(path.removesuffix("\n"))
