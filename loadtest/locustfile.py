# SPDX-License-Identifier: Apache-2.0
"""The file that Locust runs: users, a load that changes in stages, and a record of every request.

locust -f loadtest/locustfile.py --headless --host grpc://localhost:8001 --users 8 --run-time 60s --shape steps

`make loadtest` does that and writes the report. docs/load-testing.md tells how to add workers on other machines.
"""

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

import mix
from shapes import DEFAULT_SECONDS, END, SHAPES, Stage, stage_at
from users import COLUMNS, ClosedUser, OpenUser, row

__all__ = ["ClosedUser", "OpenUser", "StagedShape"]  # Locust looks for them

STAGE_COLUMNS = ["name", "users", "started"]
ROWS = "blipstream_requests"  # key in a worker's report to its master
STOPPING_SECONDS = 5.0  # that users have to stop, beyond the timeout of a request


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options to those of Locust."""
    parser.add_argument("--shape", choices=list(SHAPES), default="steady", help="How the load changes over time.")
    parser.add_argument(
        "--rate-per-user",
        type=float,
        default=0.0,
        help="Requests a second of each user, who does not wait for answers. 0: users wait for answers.",
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="Seconds that a request may take.")
    parser.add_argument("--mix", default=str(mix.DEFAULT), help="YAML file that says what to ask for.")
    parser.add_argument("--record", default="", help="Folder for requests.csv and stages.csv.")


class StagedShape(LoadTestShape):
    """Runs the stages of --shape with --users for --run-time, then waits without users until all answers are there."""

    abstract = False
    use_common_options = True

    def reset_time(self) -> None:
        """Begin with the first stage."""
        super().reset_time()
        options = self._options()
        self._seconds = options.run_time or DEFAULT_SECONDS[options.shape]
        self._stages = SHAPES[options.shape](options.num_users or 1, self._seconds)
        self._users = [OpenUser] if options.rate_per_user else [ClosedUser]
        self._stage: Stage | None = None
        if options.record:
            write_rows(Path(options.record, "stages.csv"), [STAGE_COLUMNS], "w")

    def tick(self) -> tuple[int, float, list[Any]] | None:
        """The number of users, how many of them to start in a second, and their classes; None at the end."""
        stage = stage_at(self._stages, self.get_run_time()) or Stage(END, 0, 0)
        options = self._options()
        if stage != self._stage and options.record:
            write_rows(Path(options.record, "stages.csv"), [[stage.name, stage.users, time.time()]], "a")
        self._stage = stage
        waited = self.get_run_time() - self._seconds
        if stage.name == END and (not self.get_current_user_count() or waited > options.timeout + STOPPING_SECONDS):
            return None
        return stage.users, float(max(each.users for each in self._stages)), list(self._users)

    def _options(self) -> Namespace:
        options: Namespace = self.runner.environment.parsed_options  # type: ignore[union-attr,assignment]
        return options


def write_rows(path: Path, rows: list[list[Any]], mode: str) -> None:
    """Write or append rows to a CSV file."""
    with path.open(mode, encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


class Recorder:
    """Writes each request to requests.csv. On a worker, sends it to the master, which writes it."""

    def __init__(self, environment: Environment) -> None:
        self._rows: list[list[Any]] = []  # of a worker, until its next report
        self._file: Path | None = None
        hooks = environment.events
        hooks.request.add_listener(self.record)
        if isinstance(environment.runner, WorkerRunner):
            hooks.report_to_master.add_listener(self.report)
            return
        hooks.worker_report.add_listener(self.receive)
        folder = environment.parsed_options.record if environment.parsed_options else ""
        if folder:
            self._file = Path(folder, "requests.csv")
            write_rows(self._file, [list(COLUMNS)], "w")

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
        if self._file:
            self._write(rows)
        else:
            self._rows += rows

    def report(self, data: dict[str, Any], **_: object) -> None:
        """Add the rows to a worker's report to its master."""
        data[ROWS], self._rows = self._rows, []

    def receive(self, data: dict[str, Any], **_: object) -> None:
        """Take the rows from a worker's report, at its master."""
        self._write(data.pop(ROWS, []))

    def _write(self, rows: list[list[Any]]) -> None:
        if self._file and rows:
            write_rows(self._file, rows, "a")


@events.init.add_listener
def start_recording(environment: Environment, **_: object) -> None:
    """Start to record once Locust knows whether it is a worker."""
    Recorder(environment)
