# SPDX-License-Identifier: Apache-2.0
"""How a supervised server is, for probes and for Prometheus: a small HTTP endpoint of the supervisor's own.

    /livez    the supervisor is at work
    /readyz   the server is up, and its models are ready
    /healthz  it captions, as the supervisor saw just now
    /metrics  the same as figures

The first three answer 200, or else 503, with a line of JSON that says why.
"""

import asyncio
import io
import json
import logging
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from threading import Thread
from types import TracebackType
from typing import Any, Literal, Self, get_args

from blipstream.errors import ServerError

CAPTIONS, STREAMS = DOORS = "caption", "caption_stream"  # what clients ask: streams are decoded by another process
# why a server is restarted
Reason = Literal["server_died", "process_died", "stopped", "hung", "failing", "clock", "start_failed"]
QUESTION_SECONDS = 5.0  # for a question to come and its answer to go
MOST_CONNECTIONS = 64  # at a time
BLIND_SECONDS = 10.0  # without a heartbeat, after which nobody knows whether captions come out
DEAD_SECONDS = 60.0  # after which the supervisor will not come back by itself

log = logging.getLogger("blipstream")


@dataclass
class Health:
    """What the supervisor knows. It writes, the endpoint reads."""

    ready: bool = False
    captioning: bool = False
    why: str = "the server starts"
    trouble: str = ""  # that is seen at this moment, whatever comes out meanwhile
    last_caption: float = 0.0  # seconds since 1970; 0: none yet
    failing: str = ""  # the door that no restart mends, while the other serves
    # all at 0 from the start: Prometheus overlooks a counter's first appearance
    restarts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(Reason), 0)))
    _due: float = field(default_factory=time.monotonic)  # when the next heartbeat is

    def beat(self, seconds: float = 0.0) -> None:
        """The supervisor is at work, and is busy for so many seconds."""
        self._due = time.monotonic() + seconds

    @property
    def silence(self) -> float:
        """Seconds for which a heartbeat has been due; below 0, the supervisor is busy as announced."""
        return time.monotonic() - self._due

    @property
    def captions(self) -> bool:
        """Whether captions come out."""
        return self.ready and self.captioning and not self.trouble and self.silence < BLIND_SECONDS

    def page(self, path: str) -> tuple[HTTPStatus, str, str]:
        """Status, media type and text of a page."""
        silence = self.silence
        levels = {"/livez": silence < DEAD_SECONDS, "/readyz": self.ready, "/healthz": self.captions}
        if path == "/metrics":
            return HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics()
        if path not in levels:
            return HTTPStatus.NOT_FOUND, "text/plain", f"there are {', '.join(levels)} and /metrics\n"
        still = f"the supervisor has stood still for {silence:.0f} seconds: restart it, and see that its output is read"
        why = (self.trouble or self.why) if silence < BLIND_SECONDS else still
        facts = {"ok": levels[path], "why": why, "restarts": self.restarts.total()}
        status = HTTPStatus.OK if levels[path] else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", json.dumps(facts) + "\n"

    def metrics(self) -> str:
        """In Prometheus's text format."""
        name = "blipstream_supervisor"
        lines = [
            f"# HELP {name}_captioning Whether captions come out.",
            f"# TYPE {name}_captioning gauge",
            f"{name}_captioning {int(self.captions)}",
            f"# HELP {name}_failing Whether no restart mends this one, while the other serves.",
            f"# TYPE {name}_failing gauge",
            *(f'{name}_failing{{model="{door}"}} {int(self.failing == door)}' for door in DOORS),
            f"# HELP {name}_last_caption_timestamp_seconds When the last caption was seen to come out.",
            f"# TYPE {name}_last_caption_timestamp_seconds gauge",
            f"{name}_last_caption_timestamp_seconds {self.last_caption:.3f}",
            f"# HELP {name}_restarts_total How often the server was restarted, by reason.",
            f"# TYPE {name}_restarts_total counter",
            *(f'{name}_restarts_total{{reason="{reason}"}} {count}' for reason, count in self.restarts.items()),
        ]
        return "\n".join(lines) + "\n"

    def note_caption(self) -> None:
        """A caption came out just now."""
        self.last_caption = time.time()
        self.captioning = True
        self.why = "it captions"


class HealthServer:
    """Answers while `with` lasts, in one thread: what others send or leave out costs neither threads nor files."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        """Port 0: any free one. Raises ServerError."""
        self.health = health
        try:
            self._listener = socket.create_server((host, port))
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"health port {port} cannot be opened ({error}): choose another with --health-port, or 0 for any"
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_note)
        self._stopping = asyncio.Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # the oldest first

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
        async with await asyncio.start_server(self._accept, sock=self._listener, backlog=MOST_CONNECTIONS):
            await self._stopping.wait()
            for task in list(self._open):
                self._hang_up(task)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer, and hang up on the oldest of too many: whoever asks at once has an answer before it is that."""
        if len(self._open) == MOST_CONNECTIONS:
            self._hang_up(next(iter(self._open)))
        task = asyncio.ensure_future(self._answer(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._hang_up)

    def _hang_up(self, task: asyncio.Task[None]) -> None:
        if writer := self._open.pop(task, None):
            writer.transport.abort()
            task.cancel()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, asyncio.LimitOverrunError):  # a TimeoutError is an OSError
            async with asyncio.timeout(QUESTION_SECONDS):
                question = await reader.readuntil(b"\r\n\r\n")
                writer.write(_Handler(question, self.health).answer())
                await writer.drain()
                writer.close()
                await writer.wait_closed()


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001
    """Say in one line what asyncio cannot do, as taking up a connection where no more files may be open."""
    log.warning("health endpoint: %s: %s", context["message"], context.get("exception"))


class _Handler(BaseHTTPRequestHandler):
    """Reads a question and writes its answer."""

    def __init__(self, question: bytes, health: Health) -> None:
        self.rfile, self.wfile = io.BytesIO(question), (answer := io.BytesIO())
        self._answer = answer
        self.client_address = ("", 0)
        self._health = health

    def answer(self) -> bytes:
        """The whole answer, errors included."""
        self.handle_one_request()
        return self._answer.getvalue()

    def do_GET(self) -> None:
        """Answer."""
        status, media_type, text = self._health.page(self.path.partition("?")[0])
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: probes come every few seconds."""
