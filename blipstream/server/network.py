# SPDX-License-Identifier: Apache-2.0
"""Addresses, ports, and pages that a server on this machine answers with."""

import errno
import http.client
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from blipstream.command_line import option
from blipstream.errors import ServerError
from blipstream.server.open_files import NO_FILES_LEFT

LOOPBACK = "127.0.0.1"


def local_address(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return LOOPBACK if host == "0.0.0.0" else host  # noqa: S104


def bypass_proxies(*hosts: str) -> None:
    """Let this process and its children reach this machine and `hosts` without the environment's proxy."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join(filter(None, [given, LOOPBACK, "localhost", "::1", *hosts]))


def listen(host: str, protocol: str, port: int) -> socket.socket:
    """A socket that listens on a port, or on a free one if `port` is 0. `protocol` names the port in errors.

    Raises ServerError.
    """
    option = _option(protocol)
    if not 0 <= port < 1 << 16:
        raise ServerError(f"{protocol} port {port} is out of range: choose 0 to 65535 with {option}")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ServerError(f"{host} is no address of this machine: choose another with --host") from error
        state = "may not be opened" if isinstance(error, PermissionError) else "is taken"
        raise ServerError(
            f"{protocol} port {port} {state}: choose another with {option}, or 0 for any free port"
        ) from error


def free_ports(wanted: Sequence[tuple[str, str, int]]) -> list[int]:
    """The numbers of ports that `listen` opens. All are open at once for a moment, so that those chosen here differ.

    Each of `wanted` is host, protocol and port. Raises ServerError.
    """
    users: dict[tuple[str, int], str] = {}  # protocols by address
    with ExitStack() as stack:
        numbers = []
        for host, protocol, port in wanted:
            if port and (host, port) in users:
                raise ServerError(
                    f"port {port} is given twice, for {users[host, port]} and {protocol}: choose another with "
                    f"{_option(protocol)}, or 0 for any free port"
                )
            users[host, port] = protocol
            numbers.append(stack.enter_context(listen(host, protocol, port)).getsockname()[1])
    return numbers


def _option(protocol: str) -> str:
    return option(f"{protocol.lower()}-port")


def get(host: str, port: int, path: str, seconds: float) -> tuple[int, str]:
    """Status and text of a page, over a new connection without any proxy; status 0 if there is no answer.

    Raises OSError if this process may open no more files, because that says nothing about the server.
    """
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in NO_FILES_LEFT:
            raise
        return 0, ""
    finally:
        connection.close()
