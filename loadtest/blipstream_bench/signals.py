# SPDX-License-Identifier: Apache-2.0
"""What Ctrl-C and SIGTERM do to a program that starts others."""

import signal
import sys
from types import FrameType
from typing import NoReturn


def stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the program without a traceback; further ones do not interrupt the cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
