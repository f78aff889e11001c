# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows of its server, as pages for probes and for Prometheus.

    /livez    the supervisor is at work
    /readyz   the server is up, and its models are ready
    /healthz  it answers, as the supervisor saw just now
    /metrics  the same as numbers

The first three have status 200, or else 503, and a line of JSON that says why.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import get_args

from blipstream.server.diagnosis import Reason
from blipstream.server.routes import ROUTES

BLIND_SECONDS = 10.0  # without a heartbeat, after which nobody knows whether captions come out
DEAD_SECONDS = 60.0  # without a heartbeat, after which the supervisor will not come back by itself


@dataclass
class Health:
    """What the supervisor knows. The supervisor writes it, and the health server reads it."""

    ready: bool = False
    captioning: bool = False  # a caption came out since the last start
    why: str = "the server starts"
    problem: str = ""  # something that is wrong at this moment, even if captions come out
    last_caption: float = 0.0  # seconds since 1970; 0: none yet
    failing_route: str = ""  # a route that no restart repairs, while the other answers
    # all are 0 from the start, because Prometheus overlooks a counter's first appearance
    restarts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(Reason), 0)))
    _due: float = field(default_factory=time.monotonic)  # when the next heartbeat is due

    def beat(self, seconds: float = 0.0) -> None:
        """Tell that the supervisor is at work, and will be busy for so many seconds."""
        self._due = time.monotonic() + seconds

    @property
    def overdue(self) -> float:
        """Seconds by which a heartbeat is late. Below 0, the supervisor is busy as announced."""
        return time.monotonic() - self._due

    @property
    def is_captioning(self) -> bool:
        """Whether captions come out at this moment."""
        return self.ready and self.captioning and not self.problem and self.overdue < BLIND_SECONDS

    def note_caption(self) -> None:
        """Tell that a caption came out just now."""
        self.last_caption = time.time()
        self.captioning = True
        self.why = "it answers"

    def page(self, path: str) -> tuple[HTTPStatus, str, str]:
        """Status, media type and text of a page."""
        overdue = self.overdue
        levels = {"/livez": overdue < DEAD_SECONDS, "/readyz": self.ready, "/healthz": self.is_captioning}
        if path == "/metrics":
            return HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics()
        if path not in levels:
            return HTTPStatus.NOT_FOUND, "text/plain", f"there are {', '.join(levels)} and /metrics\n"
        still = f"the supervisor has stood still for {overdue:.0f} seconds: restart it, and see that its output is read"
        why = (self.problem or self.why) if overdue < BLIND_SECONDS else still
        facts = {"ok": levels[path], "why": why, "restarts": self.restarts.total()}
        status = HTTPStatus.OK if levels[path] else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", json.dumps(facts) + "\n"

    def metrics(self) -> str:
        """The numbers in Prometheus's text format."""
        name = "blipstream_supervisor"
        lines = [
            f"# HELP {name}_captioning Whether captions come out.",
            f"# TYPE {name}_captioning gauge",
            f"{name}_captioning {int(self.is_captioning)}",
            f"# HELP {name}_failing Whether this model fails after a restart, while the other one answers.",
            f"# TYPE {name}_failing gauge",
            *(f'{name}_failing{{model="{route}"}} {int(self.failing_route == route)}' for route in ROUTES),
            f"# HELP {name}_last_caption_timestamp_seconds When a caption was last seen to come out.",
            f"# TYPE {name}_last_caption_timestamp_seconds gauge",
            f"{name}_last_caption_timestamp_seconds {self.last_caption:.3f}",
            f"# HELP {name}_restarts_total How often the server was restarted, by reason.",
            f"# TYPE {name}_restarts_total counter",
            *(f'{name}_restarts_total{{reason="{reason}"}} {count}' for reason, count in self.restarts.items()),
        ]
        return "\n".join(lines) + "\n"
