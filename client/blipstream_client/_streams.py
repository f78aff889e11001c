# SPDX-License-Identifier: Apache-2.0
"""Connections of httpcore2 with something more to them."""

import socket
import ssl
from contextlib import suppress
from typing import Any

from httpcore2 import NetworkStream


class Stream(NetworkStream):
    """A connection like the one it wraps; a subclass says what is different."""

    def __init__(self, stream: NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What came next, or nothing at the end."""
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it."""
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        """The same connection, encrypted from here on."""
        try:
            self._stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            self.close()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401
        """Such as its socket."""
        return self._stream.get_extra_info(info)

    def cut(self) -> None:
        """Hang up from another thread, which wakes the one that waits on it."""
        with suppress(OSError):
            self.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
