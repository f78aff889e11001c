# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy between client and server that fails when a test tells it to."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: closing sends RST instead of FIN


@dataclass
class Heard:
    """What one client sent."""

    data: bytearray = field(default_factory=bytearray)
    ended: str = ""  # then "orderly" or "reset"


class Proxy:
    """Forwards bytes to a port, and counts connections. Attributes may be changed while it runs."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.target = target
        self.delay = 0.0  # seconds before each chunk is forwarded
        self.deaf = False  # accepts bytes and connections and forwards nothing, as after a cable was pulled
        self.connections = 0
        self.heard: list[Heard] = []  # of each connection
        self._tls = tls  # TLS ends here: the connection to the target has none
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def cut(self, *, reset: bool = False) -> None:
        """End all connections. With `reset`, by RST instead of FIN."""
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RD)  # wakes the thread that reads it, and with it the other one

    def stop(self) -> None:
        """Hang up and listen no more."""
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, accepted)

    def _serve(self, accepted: socket.socket) -> None:
        near = accepted
        try:
            if self._tls:
                near = self._tls.wrap_socket(accepted, server_side=True)
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:  # the handshake failed, or no process listens there
            near.close()
            return
        with self._lock:
            self._ends += [near, far]
        if self._stopped.is_set():
            self.cut()
        heard = Heard()
        self.heard.append(heard)
        there = self._start(self._pass_on, near, far, heard)
        self._pass_on(far, near)
        # Closed only when no thread reads them: the next connection may get the same file descriptor, and a thread that
        # is about to read would take its bytes.
        there.join()
        near.close()
        far.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, heard: Heard | None = None) -> None:
        heard = heard or Heard()
        with contextlib.suppress(OSError, ValueError):
            while data := self._receive(source, heard):
                self._stopped.wait(self.delay)
                if source not in self._ends:  # it was cut: what still comes in is lost
                    break
                if not self.deaf:
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # wakes the other thread

    def _receive(self, source: socket.socket, heard: Heard) -> bytes:
        try:
            data = source.recv(1 << 16)
        except OSError:
            heard.ended = "reset"
            raise
        heard.data += data
        heard.ended = "" if data else "orderly"
        return data


@contextlib.contextmanager
def proxy(port: int, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A proxy to a port of this machine."""
    running = Proxy(port, tls)
    try:
        yield running
    finally:
        running.stop()
