# SPDX-License-Identifier: Apache-2.0
"""Connections of httpcore2 with something more to them."""

import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Lock
from typing import Any

from httpcore2 import SOCKET_OPTION, NetworkStream, SyncBackend


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


class CuttableBackend(SyncBackend):
    """Connects as httpcore2 does, and can end all of its connections while threads wait on them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: set[Stream] = set()
        self._cut = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> NetworkStream:
        """A connection that `cut` ends."""
        stream = CuttableStream(super().connect_tcp(host, port, timeout, local_address, socket_options), self._forget)
        with self._lock:
            self._open.add(stream)
            if self._cut:
                stream.cut()
        return stream

    def cut(self) -> None:
        """End every connection, and those that are just being made."""
        with self._lock:
            self._cut = True
            for stream in self._open:
                stream.cut()

    def _forget(self, stream: Stream) -> None:
        with self._lock:
            self._open.discard(stream)


class CuttableStream(Stream):
    """A connection that says when it is closed."""

    def __init__(self, stream: NetworkStream, forget: Callable[[Stream], None]) -> None:
        super().__init__(stream)
        self._forget = forget

    def close(self) -> None:
        """Hang up."""
        self._forget(self)
        super().close()
