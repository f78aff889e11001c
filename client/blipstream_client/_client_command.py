# SPDX-License-Identifier: Apache-2.0
"""What the client's own commands have in common."""

import logging
import os
import sys
from contextlib import suppress
from typing import Any

import click

from blipstream_client._exceptions import BlipstreamError
from blipstream_client._interrupts import prompt_interrupts
from blipstream_client._notices import Failure, Saying
from blipstream_client.bulk.job import share_one_heap
from blipstream_client.bulk.sources import STANDARD_INPUT

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT


class ClientCommand(click.Command):
    """A subcommand of the client. An exception of the client ends it with one sentence, and Ctrl-C silently."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the subcommand."""
        share_one_heap()  # before there is a second thread
        logging.getLogger("blipstream_client").addHandler(Saying())
        try:
            with prompt_interrupts():
                return super().invoke(ctx)
        except BlipstreamError as exc:
            raise Failure(str(exc)) from exc
        except KeyboardInterrupt:
            with suppress(AttributeError, OSError):  # there is no standard output
                sys.stdout.flush()
            os._exit(INTERRUPTED)  # sys.exit would wait for threads that fetch images


def several_names(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Check an argument that takes several names."""
    if values.count(STANDARD_INPUT) > 1:
        raise click.BadParameter("- is standard input, which can be read only once: leave out the others")
    return values
