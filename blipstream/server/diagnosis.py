# SPDX-License-Identifier: Apache-2.0
"""Samples of a server in, a fault out: tell a hang from slowness. Pure: it looks at nothing by itself."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

from blipstream.server.routes import CAPTION, DECODERS, MATCH, ROUTES, STAGES, STREAM, captions_by_route

SAMPLE_SECONDS = 0.5  # between two samples
HANG_SECONDS = 3.0  # to wait in vain for a caption that is due, before anything but work counts as a hang
LIVELOCK_SECONDS = 600.0  # to wait in vain, after which work is no excuse either
HALTED_SAMPLES = 2  # in a row that find a process halted: at one alone, a debugger may have stopped it for a moment
BUSY_SHARE = 0.25  # of the samples that must find a model at work for it to count as busy
SUBJECTS: dict[tuple[str, ...], str] = {
    (CAPTION,): "caption came out, though streams did,",
    (STREAM,): "stream came out, though captions did,",
    (MATCH,): "match came out, though captions did,",
}

# why a server is restarted: the label `reason` of the supervisor's metrics
Reason = Literal["server_died", "process_died", "stopped", "hung", "failing", "clock", "start_failed"]


class Fault(NamedTuple):
    """What is wrong with a server."""

    reason: Reason
    sentence: str


@dataclass(frozen=True)
class Sample:
    """Signs of life at one moment."""

    inferences: dict[str, int]  # of each model so far
    working: frozenset[str] = frozenset()  # models that compute
    halted: frozenset[str] = frozenset()  # models whose process a signal has stopped
    refusal: str = ""  # the error that the canary got instead of a caption, unless it was that of a full queue
    progress: dict[str, int] = field(default_factory=dict)  # steps of each decoder so far, and requests it refused
    pending: dict[str, int] = field(default_factory=dict)  # what waits for each model, or is under way in a decoder


@dataclass
class Diagnosis:
    """Judges the samples of a server, for all its routes or for one of them.

    A server is well as long as captions come out, and a full queue is no fault. If a caption is due and none comes for
    HANG_SECONDS, the server hangs, unless one of these excuses it for up to LIVELOCK_SECONDS:

    - A model works that has finished nothing since the last caption: a large batch takes long.
    - A decoder makes steps, of which large requests take many, or refuses requests whose senders are at fault.
    - The decoders have nothing to do, and a stage before them goes on: captions wait behind requests for it alone.
    - Of one route alone: its decoder has nothing to do, and requests wait for the stage that the other route's captions
      pass, too. The caption that is due may be one of them.

    When a model finishes its first work since the last caption, the wait starts again. What it finishes after that is
    no excuse while anything waits behind it: if a stage hangs, those before it go on for requests that will be refused.
    """

    routes: tuple[str, ...] = ROUTES
    caption_due: bool = False  # the canary has asked for a caption since the last one came out
    _silences: dict[str, float] = field(default_factory=dict)  # seconds since a caption came out, by route
    _last: dict[str, int] = field(default_factory=dict)  # inferences when the last caption came out
    _finished: set[str] = field(default_factory=set)  # models that have finished something since
    _waited: float = 0.0  # seconds since a caption became due, or since the last of `_finished` joined
    _samples: int = 0  # in that time
    _working: Counter[str] = field(default_factory=Counter)  # samples in that time that found a model at work
    _progress: int = 0  # the most progress of the decoders that was seen
    _unblocked: dict[str, int] = field(default_factory=dict)  # inferences of stages when nothing waited behind them
    _stalled: float = math.inf  # seconds since the decoders, or stages with nothing waiting behind them, went on
    _unqueued: float = math.inf  # seconds since a caption of this route alone could have waited among the other's
    _halted: int = 0  # samples in a row that found a process halted

    @classmethod
    def since(cls, inferences: dict[str, int], *routes: str, caption_due: bool = False) -> Self:
        """A diagnosis that counts from these inferences on."""
        return cls(routes or ROUTES, caption_due, _last=inferences)

    @property
    def silence(self) -> float:
        """Seconds since a caption came out on any route."""
        return min(self._silences.values(), default=0.0)

    @property
    def longest_silence(self) -> float:
        """Seconds since a caption came out on the route where that is longest ago."""
        return max(self._silences.values(), default=0.0)

    @property
    def has_worked(self) -> bool:
        """Whether a model finished anything since the last caption, so that somebody may wait for one."""
        return bool(self._finished)

    def add(self, sample: Sample, seconds: float) -> Fault | None:
        """What is wrong, if anything, given one more sample, so many seconds after the last."""
        self._halted = self._halted + 1 if sample.halted else 0
        if self._halted >= HALTED_SAMPLES:
            return Fault("stopped", f"the process of {', '.join(sorted(sample.halted))} was stopped by a signal")
        seconds = min(seconds, 2 * SAMPLE_SECONDS)  # if the supervisor was held up, the server may have been, too
        self._update_silences(sample.inferences, seconds)
        self._stalled = 0.0 if self._goes_on(sample) else self._stalled + seconds
        self._unqueued = 0.0 if self._may_queue(sample.pending) else self._unqueued + seconds
        if self.silence == 0:
            self.caption_due, self._last, self._finished = False, sample.inferences, set()
            self._restart_wait()
            return None
        finished = {model for model, count in sample.inferences.items() if count > self._last.get(model, 0)}
        if not finished <= self._finished:
            self._finished |= finished
            self._restart_wait()
        if not self.caption_due:
            self._restart_wait()
            return None
        self._waited += seconds
        self._samples += 1
        self._working.update(sample.working)
        if self._waited < HANG_SECONDS:
            return None
        what = f"no {SUBJECTS.get(self.routes, 'caption came out')} for {self.silence:.0f} seconds"
        if sample.refusal:
            return Fault("failing", f"{what}: {sample.refusal}")
        if self._waited < LIVELOCK_SECONDS and (self._is_busy() or min(self._stalled, self._unqueued) < HANG_SECONDS):
            return None
        return Fault("hung", what)

    def _update_silences(self, inferences: dict[str, int], seconds: float) -> None:
        before, now = captions_by_route(self._last), captions_by_route(inferences)
        for route in self.routes:
            if now.get(route, 0) > before.get(route, 0):
                self._silences[route] = 0.0
            elif self.routes == (route,) or route in (before or self.routes[:1]):  # a server need not have all of them
                self._silences[route] = self._silences.get(route, 0.0) + seconds

    def _goes_on(self, sample: Sample) -> bool:
        """Whether the decoders made progress since the last sample, or a stage works that nothing waits behind."""
        progress = sum(sample.progress.get(DECODERS[route], 0) for route in self.routes)
        goes_on, self._progress = progress > self._progress, max(self._progress, progress)
        for stage in self._unblocked_stages(sample.pending):
            count, before = sample.inferences.get(stage, 0), self._unblocked.get(stage, 0)
            goes_on = goes_on or count > before or stage in sample.working
            self._unblocked[stage] = max(count, before)
        return goes_on

    def _unblocked_stages(self, pending: dict[str, int]) -> tuple[str, ...]:
        """The last stage that has anything to do, and those behind it, if the decoders have nothing to do.

        For one route alone there are none: the other route's captions pass the same stages.
        """
        if self.routes != ROUTES or not pending or any(pending.get(decoder) for decoder in DECODERS.values()):
            return ()
        last = max((number for number, stage in enumerate(STAGES) if pending.get(stage)), default=0)
        return STAGES[last:]

    def _may_queue(self, pending: dict[str, int]) -> bool:
        """Whether a caption of this one route may wait among those of the other."""
        if self.routes == ROUTES or any(pending.get(DECODERS[route]) for route in self.routes):
            return False
        return bool(pending.get(STAGES[0]))

    def _restart_wait(self) -> None:
        self._waited, self._samples, self._working = 0.0, 0, Counter()

    def _is_busy(self) -> bool:
        """Whether a model works that has finished nothing since the last caption."""
        least = BUSY_SHARE * self._samples
        return any(seen >= least for model, seen in self._working.items() if model not in self._finished)
