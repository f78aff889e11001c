# SPDX-License-Identifier: Apache-2.0
"""The results of a load test: read the files that it wrote, and compute the figures of the report."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blipstream.command_line import option
from blipstream_loadtest.capacity import Step, breaking, is_flat
from blipstream_loadtest.machines import Demand
from blipstream_loadtest.shapes import PLANNED, PLANNED_LOAD, SILENCE, STEPS

UNANSWERED = ["RequestTimeout", "ServerUnreachable"]  # errors that the server did not send
NOTHING = "no request was answered"
PERCENTILES = (50, 90, 95, 99)
SLICES = 60  # of the time axis in charts, at most
REQUESTS_A_SLICE = 5  # on average, at least: percentiles of fewer mean nothing


class RecordError(Exception):
    """A folder has no complete load test; the text is one sentence."""


@dataclass(frozen=True)
class Slo:
    """The service level objective: bounds that the service must keep. None sets no bound."""

    p95_ms: float | None = None
    error_rate: float | None = None
    min_rps: float | None = None

    def misses(self, window: "Window") -> list[str]:
        """The bounds that a window breaks, a few words each."""
        found = []
        if self.p95_ms is not None and window.requests == window.errors:
            found.append("no request succeeded, so there is no p95")
        elif self.p95_ms is not None and window.p95_ms > self.p95_ms:
            found.append(f"p95 {window.p95_ms:.0f} ms is above {self.p95_ms:g} ms")
        if self.error_rate is not None and not window.error_rate <= self.error_rate:
            found.append(f"error rate {window.error_rate:.2%} is above {self.error_rate:.2%}")
        if self.min_rps is not None and not window.rps >= self.min_rps:
            found.append(f"{window.rps:.2f} requests a second are below {self.min_rps:g}")
        return found


@dataclass(frozen=True)
class Window:
    """The figures of a stretch of time."""

    name: str
    users: int
    start: float  # seconds since the first stage's start
    end: float
    requests: int  # that were due in this time
    errors: int  # of these requests
    rps: float  # answers a second in this time, without errors
    p50_ms: float  # of the requests that were due in this time and succeeded
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @property
    def error_rate(self) -> float:
        """The share of requests that failed; 1 if there were none."""
        return self.errors / self.requests if self.requests else 1.0


@dataclass(frozen=True)
class Streams:
    """How fast the texts of one kind of stream came. Both lists are PERCENTILES."""

    name: str
    streams: int
    first_text_ms: list[float]  # from the time that a request was due to its first text
    next_text_ms: list[float]  # from each text to the next


@dataclass(frozen=True)
class Verdict:
    """Whether the load test met the SLO, and a text that says why."""

    passed: bool
    text: str
    title: str  # in two words


@dataclass(frozen=True)
class ModelFigures:
    """What one model did between two readings of the statistics."""

    name: str
    requests: int
    failed: int
    total_ms: float  # mean of a request, as the next two
    queue_ms: float
    compute_ms: float
    batches: dict[int, int]  # executions by batch size

    @property
    def mean_batch(self) -> float:
        """The mean batch size of an execution."""
        executions = sum(self.batches.values())
        return sum(size * count for size, count in self.batches.items()) / executions if executions else 0.0


class RequestLog:
    """Requests of a load test, in columns."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], origin: float) -> None:
        self.due = np.array([float(row["due"]) - origin for row in rows])
        self.latency_ms = np.array([float(row["latency_ms"]) for row in rows])
        self.late_ms = np.array([float(row["late_ms"]) for row in rows])
        self.kind = np.array([f"{row['protocol']} {row['kind']}" for row in rows], dtype=np.object_)
        self.size = np.array([row["size"] for row in rows], dtype=np.object_)
        self.error = np.array([row["error"] for row in rows], dtype=np.object_)
        self.message = np.array([row["message"] for row in rows], dtype=np.object_)
        # for streams: when each text came, in ms since the request was due
        self.texts_ms = [[float(text) for text in (row.get("texts_ms") or "").split()] for row in rows]

    @cached_property
    def done(self) -> npt.NDArray[np.float64]:
        """When each request was answered, in seconds since the origin."""
        times: npt.NDArray[np.float64] = self.due + self.latency_ms / 1000
        return times

    @cached_property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which requests succeeded."""
        return np.asarray(self.error == "", dtype=np.bool_)

    def window(
        self, name: str, users: int, start: float, end: float, only: npt.NDArray[np.bool_] | None = None
    ) -> Window:
        """The figures of a stretch of time; of the requests that the mask `only` chooses, if there is one."""
        chosen = np.ones(len(self.due), dtype=np.bool_) if only is None else only
        due = chosen & (self.due >= start) & (self.due < end)
        answered = chosen & self.ok & (self.done >= start) & (self.done < end)
        latencies = self.latency_ms[due & self.ok]
        p50, p90, p95, p99 = _percentiles(latencies)
        return Window(
            name=name,
            users=users,
            start=start,
            end=end,
            requests=int(due.sum()),
            errors=int((due & ~self.ok).sum()),
            rps=float(answered.sum() / (end - start)) if end > start else 0.0,
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=float(latencies.max()) if latencies.size else float("nan"),
        )

    def streams(self) -> "list[Streams]":
        """How fast texts came, for each kind of stream."""
        found = []
        for kind in sorted(set(self.kind)):
            texts = [self.texts_ms[i] for i in np.flatnonzero(self.kind == kind) if self.texts_ms[i]]
            if texts:
                gaps = [after - before for each in texts for before, after in pairwise(each)]
                first = _percentiles([each[0] for each in texts])
                found.append(Streams(str(kind), len(texts), first, _percentiles(gaps)))
        return found

    def groups(self, column: npt.NDArray[np.object_], end: float) -> list[Window]:
        """The figures of the whole time for each value of a column."""
        return [self.window(str(value), 0, 0.0, end, column == value) for value in sorted(set(column))]


class LoadTest:
    """The results in the folder of a load test, for another demand if there is one.

    Raises RecordError if they are not complete.
    """

    def __init__(self, folder: Path, demand: Demand | None = None) -> None:
        try:
            self.conditions: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if demand:
                self.conditions["demand"] = asdict(demand)
            with (folder / "stages.csv").open(encoding="utf-8", newline="") as file:
                marks = [(row["name"], int(row["users"]), float(row["started"])) for row in csv.DictReader(file)]
            self.origin = marks[0][2]
            with (folder / "requests.csv").open(encoding="utf-8", newline="") as file:
                self.requests = RequestLog(list(csv.DictReader(file)), self.origin)
            self.lines = [
                json.loads(line) for line in (folder / "server.jsonl").read_text(encoding="utf-8").splitlines()
            ]
        except FileNotFoundError as exc:
            raise RecordError(
                f"{folder} holds no complete load test: run it again (it has no {Path(exc.filename).name})"
            ) from exc
        except (OSError, LookupError, TypeError, ValueError) as exc:
            raise RecordError(f"{folder} holds no complete load test: run it again ({exc})") from exc
        ends = [started - self.origin for _, _, started in marks[1:]]
        self.stages = [
            self.requests.window(name, users, started - self.origin, end)
            for (name, users, started), end in zip(marks, ends, strict=False)
            if users  # nobody asks in a pause
        ]
        self._fell_silent = marks[-1][0] == SILENCE
        if self._fell_silent and len(self.requests.due) == 0:
            raise RecordError(f"the server stopped answering after 0 s ({NOTHING})")
        if not self.stages or len(self.requests.due) == 0:
            raise RecordError(f"{folder} holds no complete load test: it ended before its first stage did")
        self.end = self.stages[-1].end
        self.overall = self.requests.window("all", max(stage.users for stage in self.stages), 0.0, self.end)
        self.slo = Slo(**self.conditions["slo"])
        self.planned = next((stage for stage in self.stages if stage.name == PLANNED), None)
        asked = self.conditions.get("demand")
        self.demand = Demand(**asked) if asked else None

    @cached_property
    def windows(self) -> list[Window]:
        """Equal slices of at least a second, long enough for a few requests each."""
        count = max(1, min(SLICES, int(self.end), len(self.requests.due) // REQUESTS_A_SLICE))
        edges = np.linspace(0, self.end, count + 1)
        return [
            self.requests.window("", self._users_at(start), float(start), float(end)) for start, end in pairwise(edges)
        ]

    def _users_at(self, seconds: float) -> int:
        return next((stage.users for stage in self.stages if seconds < stage.end), 0)

    @cached_property
    def by_kind(self) -> list[Window]:
        """The figures of the whole time for each kind of request."""
        return self.requests.groups(self.requests.kind, self.end)

    @cached_property
    def by_size(self) -> list[Window]:
        """The figures of the whole time for each image size."""
        return self.requests.groups(self.requests.size, self.end)

    @cached_property
    def streams(self) -> list[Streams]:
        """How fast texts came over the whole time, for each kind of stream."""
        return self.requests.streams()

    @cached_property
    def errors(self) -> list[tuple[str, str, int, str]]:
        """For each kind of error and of request: both, how many there were, and the message of the first."""
        found = self.requests
        failed = np.flatnonzero(~found.ok)
        counts = Counter((str(found.error[i]), str(found.kind[i])) for i in failed)
        first = {(str(found.error[i]), str(found.kind[i])): str(found.message[i]) for i in reversed(failed)}
        return [(error, kind, count, first[error, kind]) for (error, kind), count in counts.most_common()]

    @cached_property
    def late_p99_ms(self) -> float:
        """How late requests were sent. If that is much, the load's own machine was the bottleneck."""
        return float(np.percentile(self.requests.late_ms, 99))

    @cached_property
    def searched(self) -> list[Window]:
        """The steps of a search, by their users; none in other shapes."""
        steps = [stage for stage in self.stages if stage is not self.planned]
        return sorted(steps, key=lambda stage: stage.users) if self.conditions["shape"] == STEPS else []

    @cached_property
    def best(self) -> Window | None:
        """The stretch of time with the most answers a second within the SLO, or None. A search may choose its step."""
        good = [window for window in self.searched or [self.overall] if not self.slo.misses(window)]
        return max(good, key=lambda window: window.rps, default=None)

    @cached_property
    def stopped(self) -> str | None:
        """Why a search has no result: a sentence without its full stop; None if it has one."""
        if not self._fell_silent:
            return None
        found = self.requests
        answered = ~np.isin(found.error, UNANSWERED)
        last = max(0.0, float(found.done[answered].max())) if answered.any() else 0.0
        failed = np.flatnonzero(~answered & (found.done >= last))
        reason = found.message[failed[np.argmin(found.done[failed])]] if failed.size else NOTHING
        return f"the server stopped answering after {last:.0f} s ({reason})"

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the SLO is met: in the shape "steps" by one step and at the load to plan with, else all the time."""
        if self.stopped:
            return Verdict(False, self.stopped, "No result")
        passed, text = self._judged()
        return Verdict(passed, text, "SLO met" if passed else "SLO missed")

    def _judged(self) -> tuple[bool, str]:
        best = self.best
        if not self.searched:
            if best:
                return True, f"{best.rps:.2f} requests a second with {_p95(best)}"
            return False, "; ".join(self.slo.misses(self.overall))
        if not best:
            return False, f"no step meets the SLO; in the first, {'; '.join(self.slo.misses(self.searched[0]))}"
        if self._planned_misses:
            return (
                False,
                f"{best.name} kept to it, but requests at random times did not, at {PLANNED_LOAD:.0%} of that load",
            )
        return True, f"{best.rps:.2f} requests a second within the SLO, with {best.name}"

    @cached_property
    def _bounds(self) -> Slo:
        """The bounds that more load breaks, and less does not."""
        return replace(self.slo, min_rps=None)

    @cached_property
    def _planned_misses(self) -> list[str]:
        """The bounds that the load to plan with has broken."""
        return self._bounds.misses(self.planned) if self.planned else []

    @cached_property
    def findings(self) -> list[str]:
        """What a search found out beyond its verdict, in sentences."""
        if not self.searched or not self.best or self.stopped:
            return []
        said = [self._limit(self.best.name)]
        if self.planned:
            p95 = _p95(self.planned)
            said.append(
                f"At {self.planned.requests / (self.planned.end - self.planned.start):.1f} a second, sent at random "
                f"times as people do: {'; '.join(self._planned_misses) or p95}."
            )
        return said

    def _limit(self, best: str) -> str:
        bounds = self._bounds
        steps = [Step(stage.users, stage.rps, bool(bounds.misses(stage))) for stage in self.searched]
        above = breaking(steps)
        if above is not None:
            broken = next(stage for stage in self.searched if stage.users == above)
            return f"The limit was found: with {broken.name}, {'; '.join(bounds.misses(broken))}."
        if is_flat(steps):
            return f"The limit was found: with more than {best}, requests only wait longer."
        further = option("rate" if self.conditions.get("rate") else "users")
        return f"The limit was not reached with {self.searched[-1].name}: search on with a higher {further}."

    @cached_property
    def plan(self) -> list[str]:
        """What the demand means in machines, in sentences; none if no demand is known."""
        if not self.demand:
            return []
        said = [self.demand.text()]
        if self.stopped:
            return [*said, "Machines: unknown, since the server stopped answering."]
        if self._planned_misses:
            unknown = "Machines: unknown, since the load to plan with missed the SLO."
            return [*said, f"{unknown} Measure again on a quiet machine, or with a lower load ({option('users')})."]
        if not self.best or not self.best.rps:
            return [*said, "Machines: unknown, since no load met the SLO."]
        said.append(
            f"Machines: {self.demand.machines(self.best.rps)}, each at {PLANNED_LOAD:.0%} of the "
            f"{self.best.rps:.1f} a second measured here; one more if one may fail."
        )
        if not self.searched:
            said.append("Nothing searched for the limit, so fewer may do: the shape steps finds it.")
        return said

    @cached_property
    def unavailable(self) -> str | None:
        """Why statistics of the server are missing, or None if they are not."""
        return next((str(line["unavailable"]) for line in self.lines if "unavailable" in line), None)

    @cached_property
    def models(self) -> list[ModelFigures]:
        """What each model did in all, from the server's statistics."""
        readings = [line["models"] for line in self.lines if "models" in line]
        return list(_differences(readings[0], readings[-1])) if len(readings) > 1 else []

    @cached_property
    def models_over_time(self) -> list[tuple[float, dict[str, ModelFigures]]]:
        """What each model did in slices of time: the middle of each in seconds, and the figures by model."""
        readings = [(line["time"] - self.origin, line["models"]) for line in self.lines if "models" in line]
        readings = readings[:: max(1, len(readings) // SLICES)]
        return [
            ((start + end) / 2, {each.name: each for each in _differences(before, after)})
            for (start, before), (end, after) in pairwise(readings)
        ]

    def usage(self, who: str) -> list[tuple[float, float, float]]:
        """Seconds, cores and MB of memory of the "server" or the "load", without the first line, which has no cores."""
        return [
            (line["time"] - self.origin, line[who]["cores"], line[who]["memory_mb"])
            for line in self.lines[1:]
            if who in line
        ]

    def usage_in(self, who: str, stage: Window) -> tuple[float, float] | None:
        """The mean of cores and the most memory in MB in a stage, or None if nothing was read."""
        inside = [(cores, memory) for seconds, cores, memory in self.usage(who) if stage.start <= seconds < stage.end]
        if not inside:
            return None
        return sum(cores for cores, _ in inside) / len(inside), max(memory for _, memory in inside)

    def summary(self) -> dict[str, Any]:
        """All figures, in types that JSON has."""
        return {
            "passed": self.verdict.passed,
            "verdict": self.verdict.text,
            "findings": self.findings,
            "plan": self.plan,
            "overall": _plain(self.overall),
            "stages": [_plain(stage) for stage in self.stages],
            "kinds": [_plain(kind) for kind in self.by_kind],
            "sizes": [_plain(size) for size in self.by_size],
            "streams": [
                {"name": each.name, "streams": each.streams}
                | _named("first_text", each.first_text_ms)
                | _named("next_text", each.next_text_ms)
                for each in self.streams
            ],
            "errors": [
                dict(zip(("error", "request", "count", "message"), error, strict=True)) for error in self.errors
            ],
            "models": [asdict(model) for model in self.models],
            "late_p99_ms": self.late_p99_ms,
            "conditions": self.conditions,
        }


def _p95(window: Window) -> str:
    """The p95 of a window in words; it has none if nothing succeeded."""
    return f"p95 {window.p95_ms:.0f} ms" if window.requests > window.errors else "no success"


def _percentiles(values: Sequence[float] | npt.NDArray[np.float64]) -> list[float]:
    """PERCENTILES of the values; NaN if there are none."""
    if not len(values):
        return [np.nan] * len(PERCENTILES)
    return [float(value) for value in np.percentile(values, PERCENTILES)]


def _named(what: str, percentiles: list[float]) -> dict[str, float | None]:
    """Percentiles by the names that they have in JSON."""
    names = [f"{what}_p{number}_ms" for number in PERCENTILES]
    return {name: _finite(value) for name, value in zip(names, percentiles, strict=True)}


def _plain(window: Window) -> dict[str, Any]:
    """A window in types that JSON has."""
    values = asdict(window) | {"error_rate": window.error_rate}
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:  # noqa: ANN401
    """None instead of NaN, which JSON lacks."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterable[ModelFigures]:
    for name, last in after.items():
        first = before.get(name)
        if first is None:
            continue
        change = {key: last[key] - first[key] for key in last if key != "batches"}
        batches = {int(size): count - first["batches"].get(size, 0) for size, count in last["batches"].items()}
        yield ModelFigures(
            name=name,
            requests=change["success"],
            failed=change["fail"],
            total_ms=_mean_ms(change["success_ns"], change["success"]),
            queue_ms=_mean_ms(change["queue_ns"], change["queue"]),
            compute_ms=_mean_ms(change["compute_ns"], change["compute"]),
            batches={size: count for size, count in sorted(batches.items()) if count},
        )


def _mean_ms(nanoseconds: int, count: int) -> float:
    return nanoseconds / count / 1e6 if count else 0.0
