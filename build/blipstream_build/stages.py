# SPDX-License-Identifier: Apache-2.0
"""The stages of a build, as they are printed."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from blipstream import signals

RENEW_SECONDS = 1.0  # on a terminal, where the line is written anew
FIRST_SECONDS = 10.0  # elsewhere, where the line grows: after 10, 20, 40, 80 ... seconds


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Print what is being done, meanwhile for how long, and at the end how long it took."""
    click.echo(f"{what} ... ", nl=False)
    began = time.monotonic()
    over = threading.Event()
    clock = threading.Thread(target=_tell_time, args=(what, began, over), daemon=True)
    clock.start()
    try:
        yield
        signals.check()
        ending = ""
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt) or signals.stopping.is_set()
        ending = "interrupted" if interrupted else "failed"
        raise
    finally:
        over.set()
        clock.join()
        click.echo(ending or f"{time.monotonic() - began:.1f} s")


def _tell_time(what: str, began: float, over: threading.Event) -> None:
    """Say how long a stage has been going on, until it is over."""
    if sys.stdout.isatty():
        while not over.wait(RENEW_SECONDS):
            click.echo(f"\r{what} ... {time.monotonic() - began:.0f} s", nl=False)
        click.echo(f"\r{what} ... ", nl=False)
        return
    pause = FIRST_SECONDS
    while not over.wait(began + pause - time.monotonic()):
        click.echo(f"{pause:.0f} s ... ", nl=False)
        pause *= 2
