# SPDX-License-Identifier: Apache-2.0
"""The supervisor's own HTTP endpoint, which answers with the pages of Health."""

import asyncio
import io
import logging
import socket
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from threading import Thread
from types import TracebackType
from typing import Any, Self

from blipstream.errors import ServerError
from blipstream.server.health import Health

REQUEST_SECONDS = 5.0  # for a request to come and its response to go
MAX_CONNECTIONS = 64  # at a time

log = logging.getLogger("blipstream")


class HealthServer:
    """Answers inside a `with` block, in one thread. No client can use up threads or files, whatever it sends."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        """Listen on a port, or on any free one if it is 0. Raises ServerError."""
        self.health = health
        try:
            self._listener = socket.create_server((host, port))
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"health port {port} cannot be opened ({error}): choose another with --health-port, or 0 for any"
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_log_error)
        self._stopping = asyncio.Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # the oldest first

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._accept, sock=self._listener, backlog=MAX_CONNECTIONS):
            await self._stopping.wait()
            for task in list(self._connections):
                self._hang_up(task)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer, and close the oldest connection if there are too many.

        A client that sends its request at once has its response before its connection is the oldest.
        """
        if len(self._connections) == MAX_CONNECTIONS:
            self._hang_up(next(iter(self._connections)))
        task = asyncio.ensure_future(self._answer(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._hang_up)

    def _hang_up(self, task: asyncio.Task[None]) -> None:
        if writer := self._connections.pop(task, None):
            writer.transport.abort()
            task.cancel()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, asyncio.LimitOverrunError):  # a TimeoutError is an OSError
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(_Handler(request, self.health).response())
                await writer.drain()
                writer.close()
                await writer.wait_closed()


def _log_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001
    """Log in one line what asyncio could not do, such as to accept a connection while no more files may be open."""
    log.warning("health endpoint: %s: %s", context["message"], context.get("exception"))


class _Handler(BaseHTTPRequestHandler):
    """Reads one request and writes its response, both in memory."""

    def __init__(self, request: bytes, health: Health) -> None:
        self.rfile, self.wfile = io.BytesIO(request), (written := io.BytesIO())
        self._written = written
        self.client_address = ("", 0)
        self._health = health

    def response(self) -> bytes:
        """The whole response, errors included."""
        self.handle_one_request()
        return self._written.getvalue()

    def do_GET(self) -> None:
        """Answer with a page."""
        status, media_type, text = self._health.page(self.path.partition("?")[0])
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: probes come every few seconds."""
