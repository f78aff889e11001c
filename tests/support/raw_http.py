# SPDX-License-Identifier: Apache-2.0
"""A server that sends any bytes."""

import socket
import threading
from collections.abc import Callable
from http.client import parse_headers


def serve_raw(*answers: bytes) -> tuple[int, Callable[[], None]]:
    """A port that sends one of the answers on each connection and hangs up, and a function that waits for the end."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server:
            for answer in answers:
                connection, _ = server.accept()
                with connection, connection.makefile("rb") as request:
                    request.readline()
                    request.read(int(parse_headers(request).get("Content-Length", 0)))
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return server.getsockname()[1], thread.join


def http_answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
