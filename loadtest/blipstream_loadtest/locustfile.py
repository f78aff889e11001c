# SPDX-License-Identifier: Apache-2.0
"""The file that Locust runs: users, a load that changes in stages, and a record of every request.

`blipstream loadtest` runs it and writes a report. With Locust's own page in a browser:

locust -f loadtest/blipstream_loadtest/locustfile.py --host grpc://localhost:8001 --users 8 --run-time 60s
"""

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from blipstream_client import BlipstreamError
from blipstream_loadtest.capacity import Step
from blipstream_loadtest.options import MIX_FILE
from blipstream_loadtest.results import UNANSWERED, RequestLog, Slo
from blipstream_loadtest.shapes import DEFAULT_SECONDS, END, SILENCE, STEPS, Load, Stage, stages
from blipstream_loadtest.users import COLUMNS, ClosedUser, OpenUser, client, load_mix, row

__all__ = ["ClosedUser", "OpenUser", "StagedShape"]  # Locust looks for them

ERROR = COLUMNS.index("error")
STAGE_COLUMNS = ["name", "users", "started"]
ROWS = "blipstream_requests"  # key in a worker's report to its master
RATE = "blipstream_rate"  # message from the master to its workers: requests a second of each open-loop user
SILENCE_SECONDS = 5.0  # without an answer, after which a search asks whether the server is there,
READY_SECONDS = 10.0  # that each server has to say so
TICK_SECONDS = 1.0  # between two looks at the stage
STOPPING_SECONDS = 5.0  # that users have to stop, beyond the timeout of a request


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options to those of Locust. `blipstream loadtest --help` explains them."""
    parser.add_argument("--shape", choices=list(DEFAULT_SECONDS), default="steady")
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--ca-file")
    parser.add_argument("--mix", default=str(MIX_FILE), type=_read_mix)
    parser.add_argument("--p95-ms", type=float)
    parser.add_argument("--error-rate", type=float)
    parser.add_argument("--record", default="", help="Folder for requests.csv and stages.csv.")


def _read_mix(path: str) -> str:
    """Read the mix while Locust parses its options; else the first users would read it, in the first stage."""
    load_mix(path)
    return path


class StagedShape(LoadTestShape):
    """Runs the stages of --shape, then waits without users until all answers are there."""

    abstract = False
    use_common_options = True

    def reset_time(self) -> None:
        """Begin with the first stage."""
        super().reset_time()
        options = self._options()
        seconds = options.run_time or DEFAULT_SECONDS[options.shape]
        self._slo = Slo(options.p95_ms, options.error_rate)
        self._stages = stages(Load(options.shape, options.num_users, seconds, options.rate))
        recorder.keeps_stage = options.shape == STEPS
        if options.record:
            write_rows(Path(options.record, "stages.csv"), [STAGE_COLUMNS], "w")
        self._asked = 0.0  # the time of day at which the stage began, or it was asked whether the server is there
        self._was_silent = True  # whether the stage before had no answer
        self._users = 0
        self._ends = 0.0  # when the current stage is to end, in seconds of the run; its start may come a tick late
        self._start(next(self._stages))

    def tick(self) -> tuple[int, float, list[Any]] | None:
        """The number of users, how many of them to start in a second, and their classes; None at the end."""
        now = self.get_run_time()
        if self._stage.name in (END, SILENCE):
            waited = now - self._began
            if not self.get_current_user_count() or waited > self._options().timeout + STOPPING_SECONDS:
                return None
        elif self._has_stopped_answering(now):
            self._start(Stage(SILENCE, 0, 0))
        elif now >= self._ends:
            try:
                self._start(self._stages.send(self._measured()))
            except StopIteration:
                self._start(Stage(END, 0, 0))
        users: list[Any] = [OpenUser] if self._stage.rate else [ClosedUser]
        return self._stage.users, self._spawn_rate, users

    def _start(self, stage: Stage) -> None:
        self._spawn_rate = float(max(stage.users, self._users, 1))  # all within a second
        self._users = stage.users
        self._stage, self._began = stage, self.get_run_time()
        self._ends = max(self._ends, self._began - TICK_SECONDS) + stage.seconds
        self._asked = time.time()
        recorder.begin_stage()
        if stage.rate:
            self.runner.send_message(RATE, stage.rate / stage.users)  # type: ignore[union-attr]
        if self._options().record:
            write_rows(Path(self._options().record, "stages.csv"), [[stage.name, stage.users, time.time()]], "a")

    def _has_stopped_answering(self, now: float) -> bool:
        """Whether a search is over because nobody answers. An overloaded server still says that it is ready.

        If it says so, but answers no request of two stages, or of the first, the search is over, too.
        """
        if not recorder.keeps_stage or not self._stage.users:
            return False
        if now >= self._ends:
            was_silent, self._was_silent = self._was_silent, not recorder.heard
            return (was_silent and self._was_silent) or not (recorder.hears or self._is_ready())
        if time.time() - max(recorder.heard, self._asked) < SILENCE_SECONDS:
            return False
        is_ready = self._is_ready()
        self._asked = time.time()
        return not is_ready

    def _is_ready(self) -> bool:
        """Whether any of the servers says that it is ready."""
        options = self._options()
        for url in str(options.host).split(","):
            try:
                if client(url, READY_SECONDS, options.ca_file).is_ready():
                    return True
            except BlipstreamError:  # an answer, such as that of a proxy which keeps this question to itself
                return True
        return False

    def _measured(self) -> Step:
        """What the stage that ends has shown so far. Requests that are not answered yet are in the report alone."""
        ends = time.time()
        log = RequestLog([dict(zip(COLUMNS, each, strict=True)) for each in recorder.stage_rows], ends)
        window = log.window("", 0, -(self.get_run_time() - self._began), 0.0)
        return Step(self._stage.users, window.rps, bool(self._slo.misses(window)))

    def _options(self) -> Namespace:
        options: Namespace = self.runner.environment.parsed_options  # type: ignore[union-attr,assignment]
        return options


def write_rows(path: Path, rows: list[list[Any]], mode: str) -> None:
    """Write or append rows to a CSV file."""
    with path.open(mode, encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


class Recorder:
    """Writes each request to requests.csv. On a worker, sends it to the master, which writes it."""

    def __init__(self) -> None:
        self.keeps_stage = False
        self.stage_rows: list[list[Any]] = []  # that came in the current stage, if they are to be kept
        self.heard = 0.0  # the time of day at which the newest answer of the stage came; 0: there was none
        self.hears = False  # whether the stage's newest request was answered
        self._rows: list[list[Any]] = []  # of a worker, until its next report
        self._is_worker = False
        self._file: Path | None = None

    def start(self, environment: Environment) -> None:
        """Start to record, once Locust knows whether this process is a worker."""
        hooks = environment.events
        hooks.request.add_listener(self.record)
        self._is_worker = isinstance(environment.runner, WorkerRunner)
        if self._is_worker:
            hooks.report_to_master.add_listener(self.report)
            return
        hooks.worker_report.add_listener(self.receive)
        folder = environment.parsed_options.record if environment.parsed_options else ""
        if folder:
            self._file = Path(folder, "requests.csv")
            write_rows(self._file, [list(COLUMNS)], "w")

    def begin_stage(self) -> None:
        """Forget what came in the stage before."""
        self.stage_rows.clear()
        self.heard, self.hears = 0.0, False

    def record(
        self,
        request_type: str,
        name: str,
        response_time: float,
        context: dict[str, Any],
        exception: BaseException | None,
        **_: object,
    ) -> None:
        """Record one request. The entries for a stream's texts have no context and are left out."""
        if not context:
            return
        rows = [row(context, request_type, name, response_time, exception)]
        if self._is_worker:
            self._rows += rows
        else:
            self._take(rows)

    def report(self, data: dict[str, Any], **_: object) -> None:
        """Add the rows to a worker's report to its master."""
        data[ROWS], self._rows = self._rows, []

    def receive(self, data: dict[str, Any], **_: object) -> None:
        """Take the rows from a worker's report, at its master."""
        self._take(data.pop(ROWS, []))

    def _take(self, rows: list[list[Any]]) -> None:
        if self.keeps_stage:
            self.stage_rows += rows
        answered = [each[ERROR] not in UNANSWERED for each in rows]
        if answered:
            self.hears = answered[-1]
        if any(answered):
            self.heard = time.time()
        if self._file and rows:
            write_rows(self._file, rows, "a")


recorder = Recorder()


@events.init.add_listener
def start(environment: Environment, **_: object) -> None:
    """Record, and learn rates from the master."""

    def set_rate(msg: Any, **_: object) -> None:  # noqa: ANN401
        OpenUser.rate = msg.data

    recorder.start(environment)
    if environment.runner and not isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(RATE, set_rate)
