# SPDX-License-Identifier: Apache-2.0
"""On a real Triton, a request's id and trace reach every model, and its spans, lines and counts come out."""

import base64
import itertools
import json
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blipstream.server.triton import TritonServer
from blipstream.serving.telemetry import RESULTS
from blipstream_client import BlipstreamError, Client, InvalidRequest
from tests.conftest import SAMPLES
from tests.support.collector import Collector, collector
from tests.support.waiting import wait_until

IMAGE = (SAMPLES / "a-book.jpg").read_bytes()
Results = dict[tuple[str, ...], int]  # by model and result
Recorded = tuple[Collector, list[dict[str, Any]], BlipstreamError, Results]
TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


def results(server: TritonServer) -> Results:
    """The counts on its metrics page."""
    page = urllib.request.urlopen(server.metrics_url).read().decode()
    found = re.findall(r'^blipstream_requests_total\{model="(\w+)",result="(\w+)"\} (\d+)$', page, re.MULTILINE)
    return {tuple(labels): int(count) for *labels, count in found}


@pytest.fixture(scope="module")
def recorded(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """What a collector, the log and the metrics hold after three requests, once the server has stopped."""
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with collector() as traces:
        with TritonServer(
            artifacts, config="cpu", http_port=0, grpc_port=0, metrics_port=0,
            traces=traces.url, log_requests=True, log_path=log,
        ) as server:  # fmt: skip
            # over gRPC, Triton 2.51 loses a trace now and then
            with Client(server.http_url, headers=HEADERS) as client:
                client.caption(IMAGE)
                with pytest.raises(InvalidRequest) as refused:
                    client.caption(b"no image")
            body = {"id": "mine", "image": f"data:image/jpeg;base64,{base64.b64encode(IMAGE).decode()}"}
            question = urllib.request.Request(
                f"{server.http_url}/v2/models/caption_stream/generate_stream",
                json.dumps(body).encode(),
                HEADERS | {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(question) as answer:
                answer.read()
            wait_until(lambda: sum(results(server).values()) == 7)  # a scheduler updates its counts now and then
            counted = results(server)
        log_lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"time"')]
        yield traces, log_lines, refused.value, counted


def test_spans_of_triton_and_of_the_engine(recorded: Recorded) -> None:
    traces, *_ = recorded
    assert traces.services == {"blipstream"}
    counts = {name: len(traces.named(name)) for name in ("caption", "preprocess", "encoder", "decoder")}
    assert counts == {"caption": 2, "preprocess": 3, "encoder": 2, "decoder": 1}
    assert len(traces.named("caption_stream")) == 1
    assert len(traces.named("wait for rows")) == len(traces.named("decode")) == 2
    assert {span.trace_id.hex() for span in traces.spans} == {TRACE}


def test_lines(recorded: Recorded) -> None:
    """A line from each model that a request reached, with the sender's id."""
    _, lines, refusal, _ = recorded
    assert Counter((line["model"], line["result"]) for line in lines) == {
        ("preprocess", "ok"): 2, ("preprocess", "refused"): 1, ("encoder", "ok"): 2,
        ("decoder", "stop"): 1, ("caption_stream", "stop"): 1,
    }  # fmt: skip
    of = {line["model"]: line for line in lines if line["result"] != "ok"}
    assert of["preprocess"]["error"].startswith("image must be")
    assert of["caption_stream"]["request"] == "mine"
    assert of["preprocess"]["request"] == refusal.request_id != of["decoder"]["request"] != ""


def test_results_are_counted(recorded: Recorded) -> None:
    """By every model. Each count is there from the start; otherwise Prometheus would miss the first increment."""
    *_, counted = recorded
    nothing = dict.fromkeys(itertools.product(("preprocess", "encoder", "decoder", "caption_stream"), RESULTS), 0)
    assert counted == nothing | {
        ("preprocess", "ok"): 2, ("preprocess", "invalid"): 1, ("encoder", "ok"): 2,
        ("decoder", "ok"): 1, ("caption_stream", "ok"): 1,
    }  # fmt: skip
