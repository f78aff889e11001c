# SPDX-License-Identifier: Apache-2.0
"""Keep a server captioning: watch it, say what is wrong with it, and start it again.

Triton restarts none of its models' processes and calls itself ready without them, and it can load no model anew while
`--model-control-mode` is none. So the whole server is restarted; on two processor cores that takes five seconds.
"""

import io
import itertools
import logging
import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import NamedTuple, NoReturn, Self

from PIL import Image

import blipstream_client
from blipstream.errors import ServerError
from blipstream.server import clock
from blipstream.server.health import CAPTIONS, DOORS, STREAMS, Health, Reason
from blipstream.server.triton import TritonServer

WATCH_SECONDS = 0.5  # between looks
IDLE_SECONDS = 2.0  # without a caption, before the canary is sent if somebody seems to wait
LONG_IDLE_SECONDS = 60.0  # if nobody does, and a caption takes long
HANG_SECONDS = 3.0  # for which a caption is awaited in vain, after which nobody may be idle
LIVELOCK_SECONDS = 600.0  # after which no work is an excuse
CANARY_SECONDS = 10.0  # for the canary to come back
CANARY_SHARE = 0.02  # of an idle server's time that it may take
FEW_LOOKS = 2  # in a row for which a process may be halted: someone may only be looking at it
BUSY = 0.25  # of the looks, in which a model has to be seen at work to count as busy
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between attempts to start, growing twofold
LATE, LEAST_PATIENCE = 5.0, 60.0  # times the first start, and seconds, after which a restart counts as hung
STEADY_SECONDS = 60.0  # of service, after which a fault is not the next in a row
# That the clock may go ahead: by it, Triton waits a second for a model's process to say that it lives, which that does
# every 0.3 seconds. One that is given up too soon answers nevertheless, and who asks next takes that for their answer
STEP_SECONDS = 0.25
EMPTY = "its caption is empty"  # which is none, as where tokens have lost their words
HALF_WELL_SECONDS = 600.0  # from one restart for a single door to the next: the other serves meanwhile
SUBJECTS: dict[tuple[str, ...], str] = {
    (CAPTIONS,): "caption came out, though streams did,",
    (STREAMS,): "stream came out, though captions did,",
}
DECODERS = {CAPTIONS: "decoder", STREAMS: STREAMS}  # the model behind each door that counts its steps
STAGES = ("preprocess", "encoder")  # before both of them

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
    progress: dict[str, int] = {}  # noqa: RUF012 - steps of each decoder so far, and answers that took none
    pending: dict[str, int] = {}  # noqa: RUF012 - what waits for each model, or is under way in a decoder, if known


@dataclass
class Diagnosis:
    """Looks at a server's doors, or at one, again and again, and tells slowness under load from a hang.

    Captions that come out are all it takes to be well, a full queue is no fault, and a slow answer is none while a
    model that has finished nothing since is at work, or a decoder makes steps, of which large requests take many, or
    refuses what its senders did wrong. With the first that a model finishes, the wait for the next one begins anew.
    What it finishes after that excuses nobody as long as anything waits behind it: a stage that stands still lets those
    before it run, for requests that will be refused. Where the decoders have nothing to do, a stage before them that
    goes on working is alive: captions wait behind what somebody wants of that stage alone.
    """

    doors: tuple[str, ...] = DOORS
    awaited: bool = False  # whether the canary asked for a caption since the last came out
    _silences: dict[str, float] = field(default_factory=dict)  # seconds since a caption came out, by door
    _before: dict[str, int] = field(default_factory=dict)  # counts when the last caption came out
    _finished: set[str] = field(default_factory=set)  # models that finished something since
    _patience: float = 0.0  # seconds since a caption was awaited, or since the last of those finished its first
    _looks: int = 0  # since then
    _seen: Counter[str] = field(default_factory=Counter)  # looks since then that found a model at work
    _progress: int = 0  # that decoders were seen to have made
    _unhindered_counts: dict[str, int] = field(default_factory=dict)  # of stages when nothing last waited behind them
    _standstill: float = math.inf  # seconds since decoders came further, or a stage did that they do not hold up
    _halted: int = 0  # looks in a row that found a process halted

    @classmethod
    def since(cls, counts: dict[str, int], *doors: str, awaited: bool = False) -> Self:
        """Of what comes after so many inferences."""
        return cls(doors or DOORS, awaited, _before=counts)

    @property
    def silence(self) -> float:
        """Seconds since a caption came out."""
        return min(self._silences.values(), default=0.0)

    @property
    def neglect(self) -> float:
        """Seconds since one came out of the door where that is longest ago."""
        return max(self._silences.values(), default=0.0)

    @property
    def work_came(self) -> bool:
        """Whether anything was finished since the last caption came out, and so somebody may wait for another."""
        return bool(self._finished)

    def add(self, look: Look, seconds: float) -> Fault | None:
        """What is wrong, given one more look, so many seconds after the last."""
        self._halted = self._halted + 1 if look.stopped else 0
        if self._halted >= FEW_LOOKS:
            return Fault("stopped", f"the process of {', '.join(sorted(look.stopped))} was stopped by a signal")
        seconds = min(seconds, 2 * WATCH_SECONDS)  # if we were held up, then maybe the server was, too
        self._listen(look.counts, seconds)
        self._standstill = 0.0 if self._goes_on(look) else self._standstill + seconds
        if self.silence == 0:
            self.awaited, self._before, self._finished = False, look.counts, set()
            self._begin_patience()
            return None
        finished = {model for model, count in look.counts.items() if count > self._before.get(model, 0)}
        if not finished <= self._finished:
            self._finished |= finished
            self._begin_patience()
        if not self.awaited:
            self._begin_patience()
            return None
        self._patience += seconds
        self._looks += 1
        self._seen.update(look.working)
        if self._patience < HANG_SECONDS:
            return None
        which = SUBJECTS.get(self.doors, "caption came out")
        for_long = f"no {which} for {self.silence:.0f} seconds"
        if look.refusal:
            return Fault("failing", f"{for_long}: {look.refusal}")
        if self._patience < LIVELOCK_SECONDS and (self._is_busy() or self._standstill < HANG_SECONDS):
            return None
        return Fault("hung", for_long)

    def _listen(self, counts: dict[str, int], seconds: float) -> None:
        """Tell how long each door of the server has been silent, after so many inferences."""
        before, made = _captions(self._before), _captions(counts)
        for door in self.doors:
            if made.get(door, 0) > before.get(door, 0):
                self._silences[door] = 0.0
            elif door in before or door == self.doors[0]:  # others need not be there
                self._silences[door] = self._silences.get(door, 0.0) + seconds

    def _goes_on(self, look: Look) -> bool:
        """Whether the decoders came further since the last look, or a stage works that nothing waits behind."""
        made = sum(look.progress.get(DECODERS[door], 0) for door in self.doors)
        goes_on, self._progress = made > self._progress, max(self._progress, made)
        for stage in self._unhindered(look.pending):
            count, before = look.counts.get(stage, 0), self._unhindered_counts.get(stage, 0)
            goes_on = goes_on or count > before or stage in look.working
            self._unhindered_counts[stage] = max(count, before)
        return goes_on

    def _unhindered(self, pending: dict[str, int]) -> tuple[str, ...]:
        """The last stage that has anything to do, and those behind it, where that is none of the decoders.

        No stage where captions come out of another door: they go through the same ones.
        """
        if self.doors != DOORS or not pending or any(pending.get(decoder) for decoder in DECODERS.values()):
            return ()
        last = max((number for number, stage in enumerate(STAGES) if pending.get(stage)), default=0)
        return STAGES[last:]

    def _begin_patience(self) -> None:
        self._patience, self._looks, self._seen = 0.0, 0, Counter()

    def _is_busy(self) -> bool:
        """Whether a model that has finished nothing since the last caption is at work."""
        return any(seen >= BUSY * self._looks for model, seen in self._seen.items() if model not in self._finished)


def _captions(counts: dict[str, int]) -> dict[str, int]:
    """By door; whatever is called a caption and is no stream goes the captions' way."""
    made: Counter[str] = Counter()
    for model, count in counts.items():
        if model.startswith(CAPTIONS):
            made[STREAMS if model == STREAMS else CAPTIONS] += count
    return dict(made)


class Canary:
    """Asks at every door at once for a caption now and then, in threads, since the answers may never come.

    Where one comes out and the other does not, the queues that they share are no reason. A door that refuses may be
    asked alone until it does not. It comes over a new connection each time: a server that is out of files answers over
    old ones alone.
    """

    def __init__(self, url: str) -> None:
        self._connect = partial(blipstream_client.Client, url, timeout=CANARY_SECONDS, retries=0)
        self._clients: dict[str, blipstream_client.Client] = {}  # by the door that they ask at
        self._executor = ThreadPoolExecutor(len(DOORS), thread_name_prefix="canary")
        self._asked: dict[str, Future[None]] = {}
        self._answers: dict[str, str | None] = {}  # empty: a caption; None: not back, or nothing that tells a fault
        self._seconds: dict[str, float] = {}  # that the last answer took
        self._empty: Counter[str] = Counter()  # answers so far without a word, by door

    @property
    def refusal(self) -> str:
        """The last answer of a door that gave neither a caption nor said that there is too much to do."""
        return next(filter(None, self._answers.values()), "")

    @property
    def behind(self) -> str:
        """The door that refuses, or from which the canary is not back, while it has its caption from another."""
        for door, answer in self._answers.items():
            others = [its for other, its in self._answers.items() if other != door]
            if "" in others and answer != "" and (answer or not self._asked[door].done()):
                return door
        return ""

    @property
    def pause(self) -> float:
        """Seconds without a caption after which a door is tried."""
        return min(max(IDLE_SECONDS, sum(self._seconds.values()) / CANARY_SHARE), LONG_IDLE_SECONDS)

    def with_words(self, counts: dict[str, int]) -> dict[str, int]:
        """Inferences of each model, less those that it knows to have come out empty."""
        return {model: count - self._empty[model] for model, count in counts.items()}

    def send(self, models: Container[str], *, everywhere: bool = False) -> None:
        """Ask a server of these models, at those doors that refuse or at all, unless a question is still open."""
        if not all(asked.done() for asked in self._asked.values()):
            return
        doors = [door for door in DOORS if door == CAPTIONS or door in models]
        refusing = [door for door in doors if self._answers.get(door)]
        for door in doors if everywhere else refusing or doors:
            self._answers[door] = self._answers.get(door) or None  # what it refused, it refuses until it does not
            self._asked[door] = self._executor.submit(self._ask, door)

    def close(self) -> None:
        """Hang up."""
        for client in list(self._clients.values()):
            client.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, door: str) -> None:
        began = time.monotonic()
        answer: str | None = None  # overloaded, late or unreachable: whether that is a fault, the looks tell
        with suppress(blipstream_client.BlipstreamError), self._connect() as client:
            self._clients[door] = client
            answer = self._answer(client, door)
        self._seconds[door] = time.monotonic() - began
        self._answers[door] = answer

    def _answer(self, client: blipstream_client.Client, door: str) -> str:
        try:
            if door == STREAMS:
                text = "".join(piece.text for piece in client.stream(picture(), max_tokens=1))
            else:
                text = client.caption(picture(), max_tokens=1).text
        except (blipstream_client.ServerError, blipstream_client.ModelNotReady) as error:
            return str(error)
        if text.strip():
            return ""
        self._empty[door] += 1
        return EMPTY


def picture() -> bytes:
    """An image of a colour that was hardly seen before: no cache on the way has its answer."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(secrets.token_bytes(3))).save(file, "PNG")
    return file.getvalue()


@dataclass
class Supervisor:
    """Serves until it is interrupted."""

    server: TritonServer
    check: Callable[[TritonServer], None]  # asked once: raises ServerError if a server that is ready does not caption
    restarts: bool = True  # else the first fault is raised, but for a single door that has never answered
    health: Health = field(default_factory=Health)
    stopping: Event = field(default_factory=Event)  # for a KeyboardInterrupt that was lost, as in a destructor
    _loading: bool = False  # so that nobody is answered yet
    _step: Fault | None = None  # that the clock went ahead, since the server last began to start
    _faults: int = 0  # in a row
    _began: float = 0.0  # when the server was last seen to start
    _half_well_until: float = 0.0  # when the next fault of a single door is one for a restart
    _first_start: float = 0.0  # seconds

    def run(self, welcome: Callable[[], None]) -> NoReturn:
        """Start the server, greet, and keep it serving. Raises ServerError if the first start fails.

        Later ones are tried again for ever, since what a machine lacks may come back: a disk is emptied, a port let
        go, an artifact mended.
        """
        with clock.watched(self.stepped):
            try:
                asked = time.monotonic()
                self._start(self.server.ready_timeout)
                self._first_start = time.monotonic() - asked
                self.check(self.server)
                self.health.note_caption()
                welcome()
                while True:
                    try:
                        fault = self._watch()
                    except OSError as error:  # as where no more files may be open
                        self.health.trouble = f"the supervisor cannot look at the server: {error.strerror}"
                        self._sleep(WATCH_SECONDS)
                    else:
                        self._recover_from(fault)
            finally:
                self.health.ready = False
                self.server.stop()

    def stepped(self, seconds: float) -> None:
        """The clock went ahead by so much: end the server, from whatever thread, before it can answer wrongly.

        One that loads answers nobody yet, and is restarted when it has: a first start would fail for that.
        """
        if seconds > STEP_SECONDS:
            words = f"the clock jumped ahead by {seconds:.1f} seconds, after which Triton may mix up answers"
            self._step = Fault("clock", words)
            if not self._loading:
                self.server.strike()

    def _start(self, timeout: float) -> None:
        self._loading, self._step = True, None
        self.health.beat(timeout)
        self.server.start()
        self.server.wait_ready(timeout)
        self.health.beat()
        self._loading = False
        self._began = time.monotonic()
        self.health.ready = True
        self.health.why = "it is ready, and its first caption is awaited"

    def _watch(self) -> Fault:
        """Return once something is wrong. Raises OSError where this process itself may open no more files."""
        diagnosis = Diagnosis.since(self.server.counts())
        straggler: Diagnosis | None = None  # of the one door that is behind
        at, deaf = time.monotonic(), 0.0
        with closing(Canary(self.server.own_url)) as canary:
            while True:
                self._sleep(WATCH_SECONDS)
                if self._step:
                    return self._step
                try:
                    self.server.check()
                except ServerError as error:
                    died = Fault("process_died" if self.server.is_alive else "server_died", str(error))
                    return self._step or died
                stopped, awaited = self.server.stopped(), diagnosis.awaited or straggler is not None
                # which a halted server would keep us waiting for
                counts = {} if stopped else canary.with_words(self.server.counts())
                working = self.server.working() if awaited else frozenset()  # which costs more than the rest
                asks = awaited and not stopped
                progress, pending = (self.server.progress(), self.server.pending()) if asks else ({}, {})
                look = Look(counts, working, stopped, canary.refusal, progress, pending)
                last, at = at, time.monotonic()
                deaf = 0.0 if counts or stopped else deaf + at - last  # figures are asked over a new connection
                self.health.trouble = f"no new connection was answered for {deaf:.0f} s" if deaf >= HANG_SECONDS else ""
                if fault := diagnosis.add(look, at - last):
                    return fault
                if diagnosis.silence == 0:
                    self.health.note_caption()
                if straggler and (fault := straggler.add(look, at - last)):
                    answered = _captions(counts).get(straggler.doors[0], 0) > 0  # or else would not after a restart
                    if at >= self._half_well_until and (self.restarts or answered):
                        self._half_well_until = at + HALF_WELL_SECONDS
                        return fault
                    in_vain = "a restart did not help" if self.restarts else "none did since the start"
                    self.health.why, self.health.failing = f"{fault.sentence}; {in_vain}", canary.behind
                if stopped:
                    continue
                door = canary.behind
                if straggler is None or straggler.doors != (door,):
                    straggler = Diagnosis.since(counts, door, awaited=True) if door else None
                    self.health.failing = ""
                somebody_waits = diagnosis.silence >= IDLE_SECONDS and (
                    diagnosis.work_came or any(self.server.pending().values())
                )
                if diagnosis.neglect >= canary.pause or somebody_waits or straggler:
                    canary.send(counts, everywhere=diagnosis.silence >= canary.pause)
                    diagnosis.awaited = straggler is None

    def _recover_from(self, fault: Fault) -> None:
        """Restart the server, however often it takes."""
        if not self.restarts:
            raise ServerError(fault.sentence)
        if time.monotonic() - self._began > STEADY_SECONDS:
            self._faults = 0
        for attempt in itertools.count(1):
            wait = self._wait()
            self.health.ready = self.health.captioning = False
            self.health.why, self.health.trouble = fault.sentence, ""
            self.health.restarts[fault.reason] += 1
            log.warning("restart %d in %.1f seconds: %s", self.health.restarts.total(), wait, fault.sentence)
            try:
                self.server.kill()
                self._sleep(wait)
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
