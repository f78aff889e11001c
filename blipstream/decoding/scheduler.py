# SPDX-License-Identifier: Apache-2.0
"""In-flight batching: a thread that owns an engine, which requests enter and leave between steps."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Condition, Event, Thread
from typing import Literal

from blipstream.decoding import Engine, Request
from blipstream.errors import BlipstreamError, Gone, Overloaded, report

MAX_WAITING = 512  # requests beyond those under way; more are refused
WATCH_SECONDS = 0.05  # how long a sender may be gone before its rows are freed, beyond the step under way

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """What a request has come to since the last piece."""

    text: str  # all pieces joined are the caption
    token_scores: tuple[float, ...]  # log-probabilities of the new tokens
    finish_reason: FinishReason | None = None  # with the last piece, when the request has its captions
    error: BlipstreamError | None = None  # why it has none


@dataclass(eq=False)
class Ticket:
    """A submitted request."""

    request: Request
    listener: Callable[[Piece], None]
    is_cancelled: Callable[[], bool]
    streams: bool  # whether the listener wants every token at once
    text: str = ""  # sent so far
    ids: list[int] = field(default_factory=list)  # whose tokens were sent so far
    ended: bool = False  # the last piece was sent
    gone: bool = False  # nobody listens any more


class Scheduler:
    """Takes requests from any thread and hands them to the engine, which takes them up as it has rows for them.

    Where a step fails, those who took part begin anew, one half at a time, until a request is found that fails alone.
    Nobody else notices: the same request gets the same tokens, and a stream goes on where it was.

    Listeners, `on_end` for each request that has ended, and now and then `on_watch`, are called from one other thread,
    so that a slow one holds up no step.
    """

    def __init__(
        self,
        engine: Engine,
        max_waiting: int = MAX_WAITING,
        on_watch: Callable[["Scheduler"], None] = lambda _: None,
        on_end: Callable[[Request, str], None] = lambda _request, _result: None,
    ) -> None:
        self.engine = engine
        self.num_steps = 0
        self.num_tokens = 0  # sent on to listeners
        self._max_waiting = max_waiting
        self._on_watch = on_watch
        self._on_end = on_end
        self._entering: deque[Ticket] = deque()
        self._apart: deque[list[Ticket]] = deque()  # groups that have the engine to themselves, one after the other
        self._tickets: dict[Request, Ticket] = {}  # in the engine
        self._changed = Condition()  # guards the three above
        self._closed = Event()
        self._pieces: SimpleQueue[tuple[Ticket, Piece] | None] = SimpleQueue()
        self._threads = [Thread(target=target, daemon=True) for target in (self._run, self._deliver)]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that have no rows yet."""
        return len(self._entering) + sum(map(len, self._apart)) + self.engine.num_waiting

    def submit(
        self,
        request: Request,
        listener: Callable[[Piece], None],
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        streams: bool = False,
    ) -> None:
        """Take up a request as soon as there is room. Raises Overloaded where too many wait already."""
        with self._changed:
            self.check_room()
            self._entering.append(Ticket(request, listener, is_cancelled, streams))
            self._changed.notify_all()

    def check_room(self) -> None:
        """Raise Overloaded where too many wait already."""
        if self.is_full:
            raise Overloaded(f"{self._max_waiting} requests wait already: try again later")

    @property
    def is_full(self) -> bool:
        """Whether a request would be refused."""
        return self.num_waiting >= self._max_waiting

    def wait_for_room(self) -> None:
        """Return once a request would not be refused."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_full)

    def close(self) -> None:
        """Answer what was submitted, then end."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        """The thread that owns the engine."""
        while self._await_work():
            try:
                self._admit()
                self._step()
            except Exception as exc:
                self._part(report(exc))
        self._pieces.put(None)

    def _await_work(self) -> bool:
        """Return once there is some, or False once all is done and closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._entering or self._apart or self._tickets or self._closed.is_set())
            return bool(self._entering or self._apart or self._tickets)

    def _admit(self) -> None:
        """Hand the engine what was submitted, take from it what was cancelled."""
        with self._changed:
            entering: list[Ticket] = []
            if not self._apart:
                entering = list(self._entering)
                self._entering.clear()
            elif not self._tickets:
                entering = self._apart.popleft()
            self._tickets |= {ticket.request: ticket for ticket in entering}
        for ticket in entering:
            with self._charged_to(ticket):
                self.engine.add(ticket.request)
        for ticket in [ticket for ticket in self._tickets.values() if ticket.gone]:
            with self._charged_to(ticket):
                self.engine.cancel(ticket.request)
                self._leave(ticket, Piece("", (), "cancelled", Gone()))

    def _step(self) -> None:
        """Bring all one token further, and send what is new."""
        finished = self.engine.step()
        self.num_steps += 1
        for ticket in filter(None, map(self._tickets.get, finished)):  # None: it has an error already
            with self._charged_to(ticket):
                self._send_end(ticket)
        for ticket in list(self._tickets.values()):
            if ticket.streams:
                with self._charged_to(ticket):
                    self._send_draft(ticket)
        with self._changed:
            self._changed.notify_all()  # whoever waited for rows may have them

    def _part(self, error: BlipstreamError) -> None:
        """A step failed, and nobody knows at whom: tell the only one, or let one half begin anew, then the other."""
        tickets = list(self._tickets.values())
        if len(tickets) == 1:
            self._leave(tickets[0], Piece("", (), error=error))
        else:
            half = len(tickets) // 2
            with self._changed:
                self._tickets.clear()
                self._apart.extendleft(filter(None, (tickets[half:], tickets[:half])))
        for ticket in tickets:
            ticket.request.draft = None
        try:
            self.engine.reset()
        except Exception as exc:  # steps will go on failing, and be answered
            report(exc)

    @contextmanager
    def _charged_to(self, ticket: Ticket) -> Iterator[None]:
        """What fails within is this request's fault, which leaves with it."""
        try:
            yield
        except Exception as exc:
            self._leave(ticket, Piece("", (), error=report(exc)))
            with suppress(Exception):  # its rows are taken up by nobody, and end with their caption
                self.engine.cancel(ticket.request)

    def _leave(self, ticket: Ticket, last: Piece) -> None:
        with self._changed:
            del self._tickets[ticket.request]
            self._changed.notify_all()
        self._pieces.put((ticket, last))

    def _send_draft(self, ticket: Ticket) -> None:
        draft = ticket.request.draft
        if draft and len(draft.ids) > len(ticket.ids):
            text = self.engine.text(ticket.request, draft.ids)
            if text.startswith(ticket.text):  # a token that changes what was sent is sent with the next one
                self._pieces.put((ticket, self._piece(ticket, text, draft.ids, draft.token_scores)))

    def _send_end(self, ticket: Ticket) -> None:
        best = ticket.request.sequences[0]
        reason: FinishReason = "stop" if best.ids[-1] == self.engine.config.text.end_token_id else "length"
        text = ticket.request.captions[0].text
        self._leave(ticket, self._piece(ticket, text, best.ids, best.token_scores, reason))

    def _piece(
        self, ticket: Ticket, text: str, ids: list[int], token_scores: list[float], reason: FinishReason | None = None
    ) -> Piece:
        """What is new. Raises BlipstreamError where what was sent is not how this begins."""
        known = len(ticket.ids)
        if ids[:known] != ticket.ids:  # a step failed, and on some processors numbers are less than exact
            raise BlipstreamError("the caption came out otherwise when it was begun anew: ask for it again")
        piece = Piece(text.removeprefix(ticket.text), tuple(token_scores[known:]), reason)
        ticket.text, ticket.ids = text, list(ids)
        self.num_tokens += len(piece.token_scores)
        return piece

    def _deliver(self) -> None:
        """The thread that talks to senders. Whatever one of them, or a report, comes to, it goes on.

        All of it in one: to ask for a sender who was sent the last piece meanwhile can bring Triton down.
        """
        watch_at = time.monotonic()
        while True:
            with suppress(Empty):
                item = self._pieces.get(timeout=max(watch_at - time.monotonic(), 0))
                if item is None:
                    break
                self._tell(*item)
            if time.monotonic() >= watch_at:
                self._watch()
                watch_at = time.monotonic() + WATCH_SECONDS
        self._watch()

    def _tell(self, ticket: Ticket, piece: Piece) -> None:
        ticket.ended = bool(piece.finish_reason or piece.error)
        try:
            ticket.listener(piece)
        except Exception as exc:
            ticket.gone = True  # whoever cannot be told has gone
            if ticket.ended and not piece.error:  # if it has not, it would wait for ever
                self._tell(ticket, Piece("", (), error=report(exc)))
                return
        if ticket.ended:
            with suppress(Exception):
                self._on_end(ticket.request, piece.finish_reason or "error")

    def _watch(self) -> None:
        with self._changed:
            tickets = [*self._tickets.values(), *chain(*self._apart), *self._entering]
        for ticket in tickets:
            with suppress(Exception):  # whoever cannot be asked stays
                ticket.gone = ticket.gone or (not ticket.ended and ticket.is_cancelled())
        with suppress(Exception):
            self._on_watch(self)
