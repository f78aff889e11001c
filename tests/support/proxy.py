# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy between client and server that can be made to misbehave."""

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
    """What one client said."""

    data: bytearray = field(default_factory=bytearray)
    ended: str = ""  # "orderly" or "reset", once it has


class Proxy:
    """Passes bytes on to a port, and counts connections. Everything may be changed while it runs."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.target = target
        self.delay = 0.0  # seconds by which every piece is late
        self.deaf = False  # takes bytes and connections and passes nothing on, as a cable that was pulled
        self.connections = 0
        self.heard: list[Heard] = []  # of each connection
        self._tls = tls  # ends TLS here; the target is spoken to in plain
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def cut(self, *, reset: bool = False) -> None:
        """End all connections there are; `reset` does it without a goodbye."""
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
        except OSError:  # a handshake that failed, or nobody there
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
        # Closed only once nobody reads them: the next connection may get the same file descriptor, and a thread that is
        # about to read would take the bytes of that one.
        there.join()
        near.close()
        far.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, heard: Heard | None = None) -> None:
        heard = heard or Heard()
        with contextlib.suppress(OSError, ValueError):
            while data := self._receive(source, heard):
                self._stopped.wait(self.delay)
                if source not in self._ends:  # it was cut; what still comes in is lost
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
