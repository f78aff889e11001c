# SPDX-License-Identifier: Apache-2.0
"""Keep a server captioning: watch it, and start it again if something is wrong.

Triton restarts none of its models' processes, and calls itself ready without them. It cannot load a model again while
`--model-control-mode` is none. So the whole server is restarted, which takes five seconds on two processor cores.
"""

import itertools
import logging
import random
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from threading import Event
from typing import NoReturn

from blipstream.errors import ServerError
from blipstream.server import clock_jumps
from blipstream.server.canary import IDLE_SECONDS, Canary, check_first_answers
from blipstream.server.diagnosis import HANG_SECONDS, SAMPLE_SECONDS, Diagnosis, Fault, Sample
from blipstream.server.health import Health
from blipstream.server.metrics import Metrics
from blipstream.server.routes import captions_by_route
from blipstream.server.served_repository import why_not_matching
from blipstream.server.triton import TritonServer

FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0  # seconds between attempts to start, growing twofold
START_FACTOR, MIN_START_SECONDS = 5.0, 60.0  # a restart hangs after so many times the first start, and this at least
STEADY_SECONDS = 60.0  # of service, after which a fault is not the next in a row
ROUTE_RESTART_SECONDS = 600.0  # between restarts for a single route, since each interrupts the other one
# How far the clock may go ahead. By the clock, Triton waits a second for a model's process to say that it lives, which
# the process does every 0.3 seconds. A process that Triton gives up too soon answers nevertheless, and the next request
# takes that answer for its own.
MAX_CLOCK_JUMP = 0.25

log = logging.getLogger("blipstream")


@dataclass
class _Watch:
    """What is known of a server that runs, from one sample to the next."""

    canary: Canary
    diagnosis: Diagnosis  # of all routes
    route_diagnosis: Diagnosis | None = None  # of the one route that fails while the other answers
    sampled: float = field(default_factory=time.monotonic)  # when the last sample was taken
    unanswered: float = 0.0  # seconds for which the server has answered no new connection


@dataclass
class Supervisor:
    """Serves until it is interrupted."""

    server: TritonServer
    check: Callable[[TritonServer], None] = check_first_answers  # called once, after the first start
    # If not, the first fault is raised. A single route that has never answered is none: no start would repair it.
    restarts: bool = True
    health: Health = field(default_factory=Health)
    stopping: Event = field(default_factory=Event)  # for a KeyboardInterrupt that was lost, as in a destructor
    say: Callable[[str], None] = lambda _: None  # tells the user how far the first start is
    _loading: bool = False  # the models load, so nobody gets an answer yet
    _clock_jump: Fault | None = None  # since the server last began to start
    _faults: int = 0  # in a row
    _started: float = 0.0  # when the server last became ready
    _route_restart: float = 0.0  # when a single route may next cause a restart
    _first_start: float = 0.0  # seconds that the first start took

    def run(self, welcome: Callable[[], None]) -> NoReturn:
        """Start the server, call `welcome`, and keep it serving. Raises ServerError if the first start fails.

        Later starts are tried for ever, because what a machine lacks may come back: somebody empties a disk, frees a
        port or repairs an artifact.
        """
        with clock_jumps.watch(self.on_clock_jump):
            try:
                began = time.monotonic()
                self._start(self.server.ready_timeout, self._say_what_it_waits_for)
                self._first_start = time.monotonic() - began
                if why := self._left_out():
                    self.say(why)
                self.say("all models are ready; waiting for a first answer")
                self.check(self.server)
                self.health.note_caption()
                welcome()
                while True:
                    try:
                        fault = self._watch()
                    except OSError as error:  # such as when no more files may be open
                        self.health.problem = f"the supervisor cannot look at the server: {error.strerror}"
                        self._sleep(SAMPLE_SECONDS)
                    else:
                        self._recover_from(fault)
            except KeyboardInterrupt:
                with suppress(OSError):  # the terminal may be what went away
                    self.say(f"stopping; requests in flight have {self.server.exit_timeout} seconds")
                raise
            finally:
                self.health.ready = False
                self.server.stop()

    def on_clock_jump(self, seconds: float) -> None:
        """The clock went ahead by so much: end the server, from any thread, before it can mix up answers.

        A server that loads its models gives no answers yet, and is restarted once it is ready. Ending it at once would
        make the first start fail.
        """
        if seconds > MAX_CLOCK_JUMP:
            words = f"the clock jumped ahead by {seconds:.1f} seconds, after which Triton may mix up answers"
            self._clock_jump = Fault("clock", words)
            if not self._loading:
                self.server.sigkill()

    def _say_what_it_waits_for(self, seconds: float) -> None:
        if seconds == 0:
            self.say(f"starting Triton, which takes about ten seconds; its log:\n  {self.server.log_path}")
        else:
            self.say(f"models are still loading, after {seconds:.0f} of at most {self.server.ready_timeout:g} seconds")

    def _start(self, timeout: float, waiting: Callable[[float], None] = lambda _: None) -> None:
        self._loading, self._clock_jump = True, None
        self.health.beat(timeout)
        self.server.start()
        self.server.wait_ready(timeout, waiting)
        self.health.beat()
        self._loading = False
        self._started = time.monotonic()
        self.health.ready = True
        self.health.why = "it is ready, and its first answer is awaited"

    def _left_out(self) -> str:
        """What is not served although it was built, and why; empty if all is."""
        why = why_not_matching(self.server.repository, self.server.config)
        return f"without matching: {why}" if why else ""

    def _watch(self) -> Fault:
        """Return once something is wrong. Raises OSError if this process itself may open no more files."""
        before = self.server.metrics()
        with closing(Canary(self.server.local_url, self.server.effective_defaults)) as canary:
            watch = _Watch(canary, Diagnosis.since(before.inferences))
            while True:
                self._sleep(SAMPLE_SECONDS)
                if fault := self._clock_jump or self._dead() or self._judge(watch):
                    return fault

    def _dead(self) -> Fault | None:
        try:
            self.server.check()
        except ServerError as error:
            died = Fault("process_died" if self.server.is_alive else "server_died", str(error))
            return self._clock_jump or died  # which may be what it died of
        return None

    def _judge(self, watch: _Watch) -> Fault | None:
        """Take a sample, say what is wrong if anything, and send the canary if it is time."""
        halted = self.server.halted()
        metrics = Metrics() if halted else self.server.metrics()  # for which a halted server would let us wait
        inferences = watch.canary.without_empty(metrics.inferences)
        waiting = watch.diagnosis.caption_due or watch.route_diagnosis is not None
        working = self.server.working() if waiting else frozenset()  # this costs more than the rest
        sample = Sample(inferences, working, halted, watch.canary.refusal, metrics.progress, metrics.pending)
        now = time.monotonic()
        seconds, watch.sampled = now - watch.sampled, now
        watch.unanswered = 0.0 if inferences or halted else watch.unanswered + seconds
        no_answer = f"no new connection was answered for {watch.unanswered:.0f} s"
        self.health.problem = no_answer if watch.unanswered >= HANG_SECONDS else ""
        if fault := watch.diagnosis.add(sample, seconds):
            return fault
        if watch.diagnosis.silence == 0:
            self.health.note_caption()
        if watch.route_diagnosis and (fault := watch.route_diagnosis.add(sample, seconds)):
            if self._may_restart_for(watch.route_diagnosis, sample):
                return fault
            in_vain = "a restart did not help" if self.restarts else "none did since the start"
            self.health.why = f"{fault.sentence}; {in_vain}"
            self.health.failing_route = watch.canary.failing_route
        if not halted:
            self._send_canary(watch, sample)
        return None

    def _may_restart_for(self, diagnosis: Diagnosis, sample: Sample) -> bool:
        """Whether to restart the server for the one route that fails; if so, not again for ROUTE_RESTART_SECONDS.

        Without restarts by the supervisor, a route that has not answered since the start is let be: whoever starts the
        server again would do so for ever.
        """
        answered = captions_by_route(sample.inferences).get(diagnosis.routes[0], 0) > 0
        if time.monotonic() < self._route_restart or not (self.restarts or answered):
            return False
        self._route_restart = time.monotonic() + ROUTE_RESTART_SECONDS
        return True

    def _send_canary(self, watch: _Watch, sample: Sample) -> None:
        """Send the canary if no caption came for a while, and watch the route that fails for itself."""
        route = watch.canary.failing_route
        if watch.route_diagnosis is None or watch.route_diagnosis.routes != (route,):
            watch.route_diagnosis = Diagnosis.since(sample.inferences, route, caption_due=True) if route else None
            self.health.failing_route = ""
        silence = watch.diagnosis.silence
        somebody_waits = silence >= IDLE_SECONDS and (watch.diagnosis.has_worked or any(sample.pending.values()))
        if watch.diagnosis.longest_silence >= watch.canary.pause or somebody_waits or watch.route_diagnosis:
            watch.canary.send(sample.inferences, all_routes=silence >= watch.canary.pause)
            watch.diagnosis.caption_due = watch.route_diagnosis is None

    def _recover_from(self, fault: Fault) -> None:
        """Restart the server, however often it takes. Raises ServerError if it shall not be restarted."""
        if not self.restarts:
            raise ServerError(fault.sentence)
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._faults = 0
        for attempt in itertools.count(1):
            self._faults += 1
            pause = self._backoff()
            self.health.ready = self.health.captioning = False
            self.health.why, self.health.problem = fault.sentence, ""
            self.health.restarts[fault.reason] += 1
            log.warning("restart %d in %.1f seconds: %s", self.health.restarts.total(), pause, fault.sentence)
            try:
                self.server.kill()
                self._sleep(pause)
                timeout = self._faults * max(START_FACTOR * self._first_start, MIN_START_SECONDS)
                self._start(min(timeout, self.server.ready_timeout))
            except (ServerError, OSError) as error:
                fault = Fault("start_failed", f"{error}")
            else:
                log.warning("the server is ready again, at attempt %d", attempt)
                if why := self._left_out():
                    log.warning(why)
                return

    def _sleep(self, seconds: float) -> None:
        self.health.beat(seconds)
        if self.stopping.wait(seconds):
            raise KeyboardInterrupt

    def _backoff(self) -> float:
        """Seconds until the next attempt: none at first, then ever more, at random lest many servers keep in step."""
        longest = min(FIRST_BACKOFF * 2 ** (self._faults - 1), MAX_BACKOFF)
        return 0.0 if self._faults == 1 else random.uniform(longest / 2, longest)  # noqa: S311
