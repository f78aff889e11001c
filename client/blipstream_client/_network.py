# SPDX-License-Identifier: Apache-2.0
"""Network backends and streams for httpcore2 that another thread can abort."""

import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Lock
from typing import Any

from httpcore2 import SOCKET_OPTION, NetworkStream, SyncBackend


class Stream(NetworkStream):
    """A connection that wraps another. Subclasses change what they need."""

    def __init__(self, stream: NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes, or none at the end."""
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all bytes."""
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        """Encrypt the connection from here on."""
        try:
            self._stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            self.close()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401
        """A property of the connection, such as "socket"."""
        return self._stream.get_extra_info(info)

    def abort(self) -> None:
        """Hang up from another thread. A thread that waits for the connection wakes."""
        with suppress(OSError):
            self.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class AbortableBackend(SyncBackend):
    """Connects as httpcore2 does, and can end all its connections while threads wait for them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: set[Stream] = set()
        self._aborted = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> NetworkStream:
        """A connection that `abort` ends."""
        stream = AbortableStream(super().connect_tcp(host, port, timeout, local_address, socket_options), self._forget)
        with self._lock:
            self._open.add(stream)
            if self._aborted:
                stream.abort()
        return stream

    def abort(self) -> None:
        """End every connection, and each that is made from now on."""
        with self._lock:
            self._aborted = True
            for stream in self._open:
                stream.abort()

    def _forget(self, stream: Stream) -> None:
        with self._lock:
            self._open.discard(stream)


class AbortableStream(Stream):
    """A connection that tells its backend when it is closed."""

    def __init__(self, stream: NetworkStream, forget: Callable[[Stream], None]) -> None:
        super().__init__(stream)
        self._forget = forget

    def close(self) -> None:
        """Hang up."""
        self._forget(self)
        super().close()
