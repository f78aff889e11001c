# SPDX-License-Identifier: Apache-2.0
"""Keep a server captioning: watch it, say what is wrong with it, and start it again.

Triton restarts none of its models' processes and calls itself ready without them, and it can load no model anew while
`--model-control-mode` is none. So the whole server is restarted; on two processor cores that takes five seconds.
"""

import io
import itertools
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import NamedTuple, NoReturn

from PIL import Image

import blipstream_client
from blipstream.errors import ServerError
from blipstream.health import Health, Reason
from blipstream.server import TritonServer

WATCH_SECONDS = 0.5  # between looks
IDLE_SECONDS = 2.0  # without a caption, before the canary is sent if somebody seems to wait
LONG_IDLE_SECONDS = 30.0  # if nobody does, and a caption takes long
HANG_SECONDS = 3.0  # for which a caption is awaited in vain, after which nobody may be idle
LIVELOCK_SECONDS = 600.0  # after which no work is an excuse
CANARY_SECONDS = 10.0  # for the canary to come back
CANARY_SHARE = 0.02  # of an idle server's time that it may take
FEW_LOOKS = 2  # in a row for which a process may be halted: someone may only be looking at it
BUSY = 0.25  # of the looks, in which a model has to be seen at work to count as busy
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between attempts to start, growing twofold
LATE, LEAST_PATIENCE = 5.0, 60.0  # times the first start, and seconds, after which a restart counts as hung
STEADY_SECONDS = 60.0  # of service, after which a fault is not the next in a row
FRONT_DOORS = "caption"  # how the names of the models begin that clients ask

log = logging.getLogger("blipstream")


class Fault(NamedTuple):
    """What is wrong with a server."""

    reason: Reason
    sentence: str


class Look(NamedTuple):
    """Signs of life at one moment."""

    counts: dict[str, int]  # inferences of each model so far
    working: frozenset[str] = frozenset()  # models that compute
    stopped: frozenset[str] = frozenset()  # models whose process is halted
    refusal: str = ""  # what the server answered to the canary instead of a caption, if it was no full queue


@dataclass
class Diagnosis:
    """Looks at a server one after the other, and tells slowness under load from a hang.

    Captions that come out are all it takes to be well, a full queue is no fault, and a slow answer is none while a
    model that has finished nothing since is at work. What others finish meanwhile does not excuse it: a stage that
    stands still lets those before it run, for requests that will be refused.
    """

    silence: float = 0.0  # seconds since a caption came out
    awaited: bool = False  # whether the canary asked for one since
    _patience: float = 0.0  # seconds since it did
    _looks: int = 0  # since it did
    _before: dict[str, int] = field(default_factory=dict)  # counts when the last caption came out
    _seen: Counter[str] = field(default_factory=Counter)  # looks since it asked that found a model at work
    _halted: int = 0  # looks in a row that found a process halted

    def add(self, look: Look, seconds: float) -> Fault | None:
        """What is wrong, given one more look, so many seconds after the last."""
        self._halted = self._halted + 1 if look.stopped else 0
        if self._halted >= FEW_LOOKS:
            return Fault("stopped", f"the process of {', '.join(sorted(look.stopped))} was stopped by a signal")
        if self._captions(look.counts) > self._captions(self._before):
            self.silence, self.awaited, self._patience = 0.0, False, 0.0
            self._looks, self._before, self._seen = 0, look.counts, Counter()
            return None
        seconds = min(seconds, 2 * WATCH_SECONDS)  # if we were held up, then maybe the server was, too
        self.silence += seconds
        if not self.awaited:
            return None
        self._patience += seconds
        self._looks += 1
        self._seen.update(look.working)
        if self._patience < HANG_SECONDS:
            return None
        for_long = f"no caption came out for {self.silence:.0f} seconds"
        if look.refusal:
            return Fault("failing", f"{for_long}: {look.refusal}")
        if self._patience < LIVELOCK_SECONDS and self._is_busy(look.counts):
            return None
        return Fault("hung", for_long)

    def work_came(self, counts: dict[str, int]) -> bool:
        """Whether anything was finished since the last caption came out, and so somebody may wait for another."""
        return counts != self._before

    def _is_busy(self, counts: dict[str, int]) -> bool:
        """Whether a model that has finished nothing since the last caption is at work."""
        at_work = (model for model, seen in self._seen.items() if seen >= BUSY * self._looks)
        return any(counts.get(model, 0) <= self._before.get(model, 0) for model in at_work)

    @staticmethod
    def _captions(counts: dict[str, int]) -> int:
        return sum(count for model, count in counts.items() if model.startswith(FRONT_DOORS))


class Canary:
    """Asks for a caption now and then, in a thread of its own, since the answer may never come.

    It knocks at each door in turn, since streams are decoded by a process of their own, and stays at one that refuses.
    """

    def __init__(self, url: str) -> None:
        self._client = blipstream_client.Client(url, timeout=CANARY_SECONDS, retries=0)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="canary")
        self._asked: Future[str] | None = None
        self._streams = True
        self._seconds = 0.0  # that the last caption took

    @property
    def refusal(self) -> str:
        """The last answer, if it was neither a caption nor that there is too much to do."""
        return self._asked.result() if self._asked and self._asked.done() else ""

    @property
    def pause(self) -> float:
        """Seconds without a caption after which an idle server is asked for one."""
        return min(max(IDLE_SECONDS, self._seconds / CANARY_SHARE), LONG_IDLE_SECONDS)

    def send(self, models: Container[str]) -> None:
        """Ask a server of these models, unless the last question is still open."""
        if self._asked is None or self._asked.done():
            self._streams = "caption_stream" in models and self._streams == bool(self.refusal)
            self._asked = self._executor.submit(self._ask, streams=self._streams)

    def close(self) -> None:
        """Hang up."""
        self._client.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, *, streams: bool) -> str:
        began = time.monotonic()
        try:
            if streams:
                for _ in self._client.stream(picture(), max_tokens=1):
                    pass
            else:
                self._client.caption(picture(), max_tokens=1)
        except (blipstream_client.ServerError, blipstream_client.ModelNotReady) as error:
            return str(error)
        except blipstream_client.BlipstreamError:
            pass  # overloaded, late or unreachable: whether that is a fault, the looks tell
        self._seconds = time.monotonic() - began
        return ""


def picture() -> bytes:
    """An image of a colour that was hardly seen before: the response cache would answer without a model."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(secrets.token_bytes(3))).save(file, "PNG")
    return file.getvalue()


@dataclass
class Supervisor:
    """Serves until it is interrupted."""

    server: TritonServer
    check: Callable[[TritonServer], None]  # asked once: raises ServerError if a server that is ready does not caption
    restarts: bool = True  # else the first fault is raised
    health: Health = field(default_factory=Health)
    stopping: Event = field(default_factory=Event)  # for a KeyboardInterrupt that was lost, as in a destructor
    _faults: int = 0  # in a row
    _began: float = 0.0  # when the server was last seen to start
    _first_start: float = 0.0  # seconds

    def run(self, welcome: Callable[[], None]) -> NoReturn:
        """Start the server, greet, and keep it serving. Raises ServerError if the first start fails.

        Later ones are tried again for ever, since what a machine lacks may come back: a disk is emptied, a port let
        go, an artifact mended.
        """
        try:
            asked = time.monotonic()
            self._start(self.server.ready_timeout)
            self._first_start = time.monotonic() - asked
            self.check(self.server)
            self.health.note_caption()
            welcome()
            while True:
                self._recover_from(self._watch())
        finally:
            self.health.ready = False
            self.server.stop()

    def _start(self, timeout: float) -> None:
        self.health.beat(timeout)
        self.server.start()
        self.server.wait_ready(timeout)
        self.health.beat()
        self._began = time.monotonic()
        self.health.ready = True
        self.health.why = "it is ready, and its first caption is awaited"

    def _watch(self) -> Fault:
        """Return once something is wrong."""
        diagnosis = Diagnosis(_before=self.server.counts())
        at = time.monotonic()
        with closing(Canary(self.server.own_url)) as canary:
            while True:
                self._sleep(WATCH_SECONDS)
                try:
                    self.server.check()
                except ServerError as error:
                    return Fault("process_died" if self.server.is_alive else "server_died", str(error))
                counts = self.server.counts()
                working = self.server.working() if diagnosis.awaited else frozenset()  # which costs more than the rest
                last, at = at, time.monotonic()
                fault = diagnosis.add(Look(counts, working, self.server.stopped(), canary.refusal), at - last)
                if fault:
                    return fault
                if diagnosis.silence == 0:
                    self.health.note_caption()
                if diagnosis.silence >= canary.pause or (
                    diagnosis.silence >= IDLE_SECONDS and (diagnosis.work_came(counts) or self.server.pending())
                ):
                    canary.send(counts)
                    diagnosis.awaited = True

    def _recover_from(self, fault: Fault) -> None:
        """Restart the server, however often it takes."""
        if not self.restarts:
            raise ServerError(fault.sentence)
        if time.monotonic() - self._began > STEADY_SECONDS:
            self._faults = 0
        for attempt in itertools.count(1):
            wait = self._wait()
            self.health.ready = self.health.captioning = False
            self.health.why = fault.sentence
            self.health.restarts[fault.reason] += 1
            log.warning("restart %d in %.1f seconds: %s", self.health.restarts.total(), wait, fault.sentence)
            self.server.kill()
            self._sleep(wait)
            try:
                patience = self._faults * max(LATE * self._first_start, LEAST_PATIENCE)
                self._start(min(patience, self.server.ready_timeout))
            except (ServerError, OSError) as error:
                fault = Fault("start_failed", f"{error}")
            else:
                log.warning("the server is ready again, at attempt %d", attempt)
                return

    def _sleep(self, seconds: float) -> None:
        self.health.beat(seconds)
        if self.stopping.wait(seconds):
            raise KeyboardInterrupt

    def _wait(self) -> float:
        """Seconds until the next attempt: none at first, then ever more, at random lest many servers go in step."""
        self._faults += 1
        longest = min(FIRST_WAIT * 2 ** (self._faults - 1), LONGEST_WAIT)
        return 0.0 if self._faults == 1 else random.uniform(longest / 2, longest)  # noqa: S311
