# SPDX-License-Identifier: Apache-2.0
"""Triton's metrics page, read into numbers."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Self

from blipstream.server.routes import ROUTES
from blipstream.serving.metrics import ROWS, STEPS, WAITING
from blipstream.serving.telemetry import COUNTER, REFUSALS

INFERENCES, QUEUED = "nv_inference_count", "nv_inference_pending_request_count"
LINE = re.compile(rf"^({'|'.join((INFERENCES, QUEUED, COUNTER, STEPS, ROWS, WAITING))})\{{(.*)\}} (\d+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Metrics:
    """What the page said at one moment, by model. All three are empty if the server did not answer.

    A model on several GPUs has a line for each, which are added up.
    """

    # Inferences that succeeded so far. A model that counts its own results goes before Triton, which takes every
    # response for a success.
    inferences: dict[str, int] = field(default_factory=dict)
    # Requests in Triton's queue and in the model's own, and rows under way, which only decoders report.
    pending: dict[str, int] = field(default_factory=dict)
    # Steps of the decoders, and requests that a model refused because their sender was at fault. The refusals of a
    # route's own model do not count: it may go on refusing while all models behind it hang.
    progress: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, page: str) -> Self:
        """Read a page in Prometheus's text format."""
        totals: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # by metric and result, then model
        for name, text, value in LINE.findall(page):
            labels = dict(LABEL.findall(text))
            if "model" in labels:
                totals[name, labels.get("result", "")][labels["model"]] += int(value)
        refused = _sum(*(totals[COUNTER, result] for result in REFUSALS))
        return cls(
            inferences={**totals[INFERENCES, ""], **totals[COUNTER, "ok"]},
            pending=_sum(totals[QUEUED, ""], totals[ROWS, ""], totals[WAITING, ""]),
            progress=_sum(
                totals[STEPS, ""], Counter({model: n for model, n in refused.items() if model not in ROUTES})
            ),
        )


def _sum(*counts: Counter[str]) -> dict[str, int]:
    """The totals of each model, zeros included, which Counter's own addition would drop."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
