# SPDX-License-Identifier: Apache-2.0
"""In-flight batching: requests enter and leave the engine between its steps."""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Condition, Event, Thread
from typing import NamedTuple

from blipstream.decoding.engine import Engine
from blipstream.decoding.queue import RequestQueue
from blipstream.decoding.request import FinishReason, Request, TextDelta, TokenSequence
from blipstream.errors import BlipstreamError, Gone, Overloaded, report

MAX_WAITING = 512  # requests beside those that run; more are refused
WATCH_SECONDS = 0.05  # how long a client may be gone before its rows are freed, beyond the step under way


class News(NamedTuple):
    """What the engine's thread has to tell of a request: a caption, or that there will be none."""

    request: Request
    sequence: TokenSequence | None = None  # all of it so far
    reason: FinishReason | None = None  # as in TextDelta
    error: BlipstreamError | None = None


class Scheduler:
    """Takes requests from any thread, keeps those that wait, and hands them to the engine when it has rows for them.

    If a step fails, the requests that took part begin anew, one half at a time, until one is found that fails alone.
    The others get the same tokens, and a stream goes on where it was. Where rounding depends on the batch, a stream may
    get other tokens than those already sent: then it ends with an error.

    One thread drives the engine. Another one makes texts of tokens and calls the listeners, `on_end` for each request
    that has ended, and `on_watch` now and then, so that none of these holds up a step.
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
        self._streams: dict[Request, None] = {}  # of those that run
        self._changed = Condition()  # guards the four above
        self._closed = Event()
        self._gone: deque[Request] = deque()  # whose clients have gone, in whatever state they are
        self._news: SimpleQueue[News | None] = SimpleQueue()
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
                self._drop_gone()
                self._admit()
                self._step()
            except Exception as exc:
                self._split(report(exc))
        self._news.put(None)

    def _warm_up(self) -> None:
        try:
            self.engine.warm_up()
            # What is there now stays: let no garbage collection look through it while steps wait
            gc.collect()
            gc.freeze()
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

    def _drop_gone(self) -> None:
        """End the requests whose clients have gone, wherever they are."""
        while self._gone:
            request = self._gone.popleft()
            with self._changed:
                if request in self._all():
                    with self._blamed_on(request):
                        self.engine.cancel(request)  # which knows it only if it runs
                        self._end(News(request, None, "cancelled", Gone()))

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
        if request.streams:
            self._streams[request] = None
        with self._blamed_on(request):
            self.engine.admit(request)

    def _step(self) -> None:
        """Bring all that run one token further, and send what is new."""
        finished = self.engine.step()
        self.num_steps += 1
        with self._changed:
            for request in finished:
                if request in self._running:  # else it has had an error already
                    best = request.sequences[0]
                    stopped = best.ids[-1] == self.engine.config.text.end_token_id
                    self._end(News(request, best, "stop" if stopped else "length"))
            for request in self._streams:
                if request.draft:
                    self._news.put(News(request, request.draft))
            self._changed.notify_all()  # there may be room now

    def _split(self, error: BlipstreamError) -> None:
        """A step failed, and nobody knows which request is to blame: if there is one, end it; else try two halves."""
        running = list(self._running)
        if len(running) == 1:
            self._end(News(running[0], error=error))
        else:
            half = len(running) // 2
            with self._changed:
                self._running.clear()
                self._streams.clear()
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
            self._end(News(request, error=report(exc)))
            with suppress(Exception):  # then its rows end with its caption
                self.engine.cancel(request)

    def _end(self, last: News) -> None:
        """Forget a request, wherever it is, and tell the last of it."""
        request = last.request
        with self._changed:
            self._streams.pop(request, None)
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
        self._news.put(last)

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
                news = self._news.get(timeout=max(watch_at - time.monotonic(), 0))
                if news is None:
                    break
                self._tell(news)
            if time.monotonic() >= watch_at:
                self._watch()
                watch_at = time.monotonic() + WATCH_SECONDS
        self._watch()

    def _tell(self, news: News) -> None:
        request = news.request
        if request.has_ended:
            return
        try:
            delta = self._delta(news)
        except Exception as exc:
            delta = TextDelta("", (), error=report(exc))
            self._forget(request)
        if delta:
            self._send(request, delta)

    def _delta(self, news: News) -> TextDelta | None:
        """What is new. Raises BlipstreamError if the text does not begin with what was sent."""
        request, sequence, reason, error = news
        if sequence is None:
            return TextDelta("", (), reason, error)
        known = len(request.sent_ids)
        if reason:
            text = request.captions[0].text
        elif len(sequence.ids) <= known:
            return None
        else:
            text = request.text(sequence.ids)
            if not text.startswith(request.sent_text):  # a token that changes what was sent is sent with the next one
                return None
        # if a step has failed: on some processors numbers depend on the batch
        if sequence.ids[:known] != request.sent_ids:
            raise BlipstreamError("the caption came out otherwise when it was begun anew: ask for it again")
        delta = TextDelta(text.removeprefix(request.sent_text), tuple(sequence.token_scores[known:]), reason)
        request.sent_text, request.sent_ids = text, sequence.ids
        self.num_tokens += len(delta.token_scores)
        return delta

    def _send(self, request: Request, delta: TextDelta) -> None:
        request.has_ended = delta.is_last
        try:
            request.listener(delta)
        except Exception as exc:
            self._forget(request)  # a client that cannot be told has gone
            if delta.is_last and not delta.error:  # if it has not, it would wait for ever
                self._send(request, TextDelta("", (), error=report(exc)))
                return
        if request.has_ended:
            with suppress(Exception):
                self._on_end(request, delta.finish_reason or "error")

    def _forget(self, request: Request) -> None:
        """Let the other thread free a request's rows, if it has any."""
        if not request.has_gone:
            request.has_gone = True
            self._gone.append(request)

    def _watch(self) -> None:
        with self._changed:
            requests = self._all()
        for request in requests:
            with suppress(Exception):  # a client that cannot be asked stays
                if not request.has_ended and request.is_cancelled():
                    self._forget(request)
        with suppress(Exception):
            self._on_watch(self)
