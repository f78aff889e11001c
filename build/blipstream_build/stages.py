# SPDX-License-Identifier: Apache-2.0
"""The stages of a build, as they are printed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from blipstream import signals


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Print what is being done, and how long it took."""
    click.echo(f"{what} ... ", nl=False)
    began = time.monotonic()
    try:
        yield
        signals.check()
    except BaseException:
        click.echo("failed")
        raise
    click.echo(f"{time.monotonic() - began:.1f} s")
