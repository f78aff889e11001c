# SPDX-License-Identifier: Apache-2.0
"""In-flight batching: requests enter and leave the engine between its steps."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Condition, Event, Thread

from blipstream.decoding.engine import Engine
from blipstream.decoding.queue import RequestQueue
from blipstream.decoding.request import FinishReason, Request, TextDelta
from blipstream.errors import BlipstreamError, Gone, Overloaded, report

MAX_WAITING = 512  # requests beside those that run; more are refused
WATCH_SECONDS = 0.05  # how long a client may be gone before its rows are freed, beyond the step under way


class Scheduler:
    """Takes requests from any thread, keeps those that wait, and hands them to the engine when it has rows for them.

    If a step fails, the requests that took part begin anew, one half at a time, until one is found that fails alone.
    The others get the same tokens, and a stream goes on where it was. Where rounding depends on the batch, a stream may
    get other tokens than those already sent: then it ends with an error.

    One thread drives the engine. Another one calls the listeners, `on_end` for each request that has ended, and
    `on_watch` now and then, so that a slow one of these holds up no step.
    """

    def __init__(
        self,
        engine: Engine,
        max_waiting: int = MAX_WAITING,
        on_watch: Callable[["Scheduler"], None] = lambda _: None,
        on_end: Callable[[Request, str], None] = lambda _request, _result: None,
        *,
        warm_up: bool = False,
    ) -> None:
        """`warm_up`: return when the engine is warmed up, in the thread that will drive it; raise what fails there."""
        self.engine = engine
        self.num_steps = 0
        self.num_tokens = 0  # sent to listeners
        self._max_waiting = max_waiting
        self._on_watch = on_watch
        self._on_end = on_end
        self._waiting = RequestQueue()
        self._retries: deque[list[Request]] = deque()  # groups whose step failed: each gets the engine to itself
        self._running: dict[Request, None] = {}  # in the engine, in the order of their admission
        self._changed = Condition()  # guards the three above
        self._closed = Event()
        self._deltas: SimpleQueue[tuple[Request, TextDelta] | None] = SimpleQueue()
        self._threads = [Thread(target=target, daemon=True) for target in (self._run, self._deliver)]
        self._warmed_up: Future[None] = Future()
        if not warm_up:
            self._warmed_up.set_result(None)
        for thread in self._threads:
            thread.start()
        self._warmed_up.result()

    @property
    def num_waiting(self) -> int:
        """Requests that have no rows."""
        return len(self._waiting) + sum(map(len, tuple(self._retries)))

    def submit(
        self,
        request: Request,
        listener: Callable[[TextDelta], None],
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        streams: bool = False,
    ) -> None:
        """Run a request as soon as there are rows for it. Raises Overloaded if too many wait already.

        `streams`: the listener hears of each token at once, instead of all at the end.
        """
        request.listener, request.is_cancelled, request.streams = listener, is_cancelled, streams
        with self._changed:
            self.check_room()
            self._waiting.add(request)
            self._changed.notify_all()

    def check_room(self) -> None:
        """Raise Overloaded if too many wait already."""
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

    # the thread that drives the engine

    def _run(self) -> None:
        if not self._warmed_up.done():
            self._warm_up()
        while self._await_work():
            try:
                self._drop_cancelled()
                self._admit()
                self._step()
            except Exception as exc:
                self._split(report(exc))
        self._deltas.put(None)

    def _warm_up(self) -> None:
        try:
            self.engine.warm_up()
        except Exception as exc:
            self._closed.set()
            self._warmed_up.set_exception(exc)
        else:
            self._warmed_up.set_result(None)

    def _await_work(self) -> bool:
        """Return True once there is work, or False once all is done and closed."""

        def has_work() -> bool:
            return bool(self._waiting or self._retries or self._running)

        with self._changed:
            self._changed.wait_for(lambda: has_work() or self._closed.is_set())
            return has_work()

    def _drop_cancelled(self) -> None:
        """End the requests whose clients have gone, wherever they are."""
        with self._changed:
            for request in [request for request in self._all() if request.has_gone]:
                with self._blamed_on(request):
                    self.engine.cancel(request)  # which knows it only if it runs
                    self._end(request, TextDelta("", (), "cancelled", Gone()))

    def _admit(self) -> None:
        """Hand the engine the requests whose turn it is."""
        with self._changed:
            if self._retries:
                admitted = [] if self._running else self._retries.popleft()
                for request in admitted:
                    self._start(request)
                return
            while (first := self._waiting.first()) and self.engine.can_admit(first):
                self._start(self._waiting.take_first())

    def _start(self, request: Request) -> None:
        self._running[request] = None
        with self._blamed_on(request):
            self.engine.admit(request)

    def _step(self) -> None:
        """Bring all that run one token further, and send what is new."""
        finished = self.engine.step()
        self.num_steps += 1
        for request in finished:
            if request in self._running:  # else it has had an error already
                with self._blamed_on(request):
                    self._send_end(request)
        for request in list(self._running):
            if request.streams:
                with self._blamed_on(request):
                    self._send_draft(request)
        with self._changed:
            self._changed.notify_all()  # there may be room now

    def _split(self, error: BlipstreamError) -> None:
        """A step failed, and nobody knows which request is to blame: if there is one, end it; else try two halves."""
        running = list(self._running)
        if len(running) == 1:
            self._end(running[0], TextDelta("", (), error=error))
        else:
            half = len(running) // 2
            with self._changed:
                self._running.clear()
                self._retries.extendleft(filter(None, (running[half:], running[:half])))
        for request in running:
            request.draft = None
        try:
            self.engine.reset()
        except Exception as exc:  # steps will go on failing, and be answered
            report(exc)

    @contextmanager
    def _blamed_on(self, request: Request) -> Iterator[None]:
        """End a request with the error that is raised within."""
        try:
            yield
        except Exception as exc:
            self._end(request, TextDelta("", (), error=report(exc)))
            with suppress(Exception):  # then its rows end with its caption
                self.engine.cancel(request)

    def _end(self, request: Request, last: TextDelta) -> None:
        """Forget a request, wherever it is, and send its last delta."""
        with self._changed:
            if request in self._running:
                del self._running[request]
            elif request in self._waiting:
                self._waiting.remove(request)
            else:
                for group in self._retries:
                    if request in group:
                        group.remove(request)
                self._retries = deque(filter(None, self._retries))
            self._changed.notify_all()
        self._deltas.put((request, last))

    def _send_draft(self, request: Request) -> None:
        draft = request.draft
        if draft and len(draft.ids) > len(request.sent_ids):
            text = self.engine.text(request, draft.ids)
            if text.startswith(request.sent_text):  # a token that changes what was sent is sent with the next one
                self._deltas.put((request, self._delta(request, text, draft.ids, draft.token_scores)))

    def _send_end(self, request: Request) -> None:
        best = request.sequences[0]
        reason: FinishReason = "stop" if best.ids[-1] == self.engine.config.text.end_token_id else "length"
        self._end(request, self._delta(request, request.captions[0].text, best.ids, best.token_scores, reason))

    def _delta(
        self, request: Request, text: str, ids: list[int], token_scores: list[float], reason: FinishReason | None = None
    ) -> TextDelta:
        """What is new. Raises BlipstreamError if the text does not begin with what was sent."""
        known = len(request.sent_ids)
        if ids[:known] != request.sent_ids:  # a step failed, and on some processors numbers depend on the batch
            raise BlipstreamError("the caption came out otherwise when it was begun anew: ask for it again")
        delta = TextDelta(text.removeprefix(request.sent_text), tuple(token_scores[known:]), reason)
        request.sent_text, request.sent_ids = text, list(ids)
        self.num_tokens += len(delta.token_scores)
        return delta

    def _all(self) -> list[Request]:
        return [*self._running, *chain(*self._retries), *self._waiting]

    # the thread that talks to clients

    def _deliver(self) -> None:
        """Tell listeners what is new, and watch their clients. An error in one stops nothing else.

        One thread does both: Triton can crash if it is asked about a client that was sent its last delta.
        """
        watch_at = time.monotonic()
        while True:
            with suppress(Empty):
                item = self._deltas.get(timeout=max(watch_at - time.monotonic(), 0))
                if item is None:
                    break
                self._tell(*item)
            if time.monotonic() >= watch_at:
                self._watch()
                watch_at = time.monotonic() + WATCH_SECONDS
        self._watch()

    def _tell(self, request: Request, delta: TextDelta) -> None:
        request.has_ended = delta.is_last
        try:
            request.listener(delta)
        except Exception as exc:
            request.has_gone = True  # a client that cannot be told has gone
            if delta.is_last and not delta.error:  # if it has not, it would wait for ever
                self._tell(request, TextDelta("", (), error=report(exc)))
                return
        if request.has_ended:
            with suppress(Exception):
                self._on_end(request, delta.finish_reason or "error")

    def _watch(self) -> None:
        with self._changed:
            requests = self._all()
        for request in requests:
            with suppress(Exception):  # a client that cannot be asked stays
                request.has_gone = request.has_gone or (not request.has_ended and request.is_cancelled())
        with suppress(Exception):
            self._on_watch(self)
