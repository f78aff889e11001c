# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a request once it has ended: counts, and lines of JSON and spans if they are turned on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from blipstream.decoding import Engine, Request, load_engine
from blipstream.decoding.scheduler import Scheduler
from blipstream.errors import BlipstreamError, Gone, InvalidImage, InvalidInput, Overloaded, TimedOut
from blipstream.extras import how_to_install
from blipstream.options import DecodingOptions
from blipstream.serving.telemetry import ENDPOINT, LOG_REQUESTS, RESULTS, Telemetry
from tests.support.collector import Collector, collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = json.dumps({"traceparent": f"00-{TRACE}-{PARENT}-01"})


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as running:
        monkeypatch.setenv(ENDPOINT, running.url)
        yield running


@pytest.fixture(scope="module")
def own_engine(f32_artifacts: Path) -> Engine:
    return load_engine(f32_artifacts / "decoder/1/artifact")


def decode(engine: Engine, **facts: Any) -> Request:
    """Generate three tokens for an image of zeros, by a scheduler with telemetry; then close both."""
    options = DecodingOptions(max_tokens=3, min_tokens=3)
    request, done = engine.request(torch.zeros(engine.image_embeds_shape), options, **facts), Event()
    telemetry = Telemetry("decoder")
    scheduler = Scheduler(engine, on_end=telemetry.record_decoding)
    scheduler.submit(request, lambda piece: done.set() if piece.finish_reason else None)
    assert done.wait(60)
    scheduler.close()
    telemetry.close()
    return request


def test_nothing_is_written_by_default(
    own_engine: Engine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as running:
        monkeypatch.delenv(ENDPOINT, raising=False)
        monkeypatch.delenv(LOG_REQUESTS, raising=False)
        decode(own_engine, request_id="a", trace_context=CONTEXT)
    assert capfd.readouterr().out == ""
    assert running.spans == []


def test_lines(own_engine: Engine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_REQUESTS, "1")
    decode(own_engine, request_id="a")
    Telemetry("preprocess").record_refusal("b", InvalidInput('no "image"'))
    Telemetry("encoder").record_response("c", images=2, seconds=0.0125)
    ended, refused, answered = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    times = [ended.pop(name) for name in ("time", "waited_ms", "decoded_ms")]
    assert ended == {
        "model": "decoder", "request": "a", "result": "length", "strategy": "greedy", "captions": 1, "tokens": 3,
    }  # fmt: skip
    assert 0 <= times[1] < 60_000
    assert 0 < times[2] < 60_000
    refused.pop("time")
    assert refused == {"model": "preprocess", "request": "b", "result": "refused", "error": 'no "image"'}
    answered.pop("time")
    assert answered == {"model": "encoder", "request": "c", "result": "ok", "images": 2, "batch_ms": 12.5}


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    code = """
import sys
from blipstream.errors import InvalidInput
from blipstream.serving.telemetry import Telemetry
for model in ("preprocess", "decoder"):
    Telemetry(model).record_refusal("b", InvalidInput("no image"))
print("it goes on", file=sys.stderr)
"""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env={LOG_REQUESTS: "1"}
        )
    assert result.stderr.startswith("it goes on\n")


def test_results_are_counted(own_engine: Engine) -> None:
    telemetry = Telemetry("caption_stream")
    assert telemetry.results == dict.fromkeys(RESULTS, 0)
    request = own_engine.request(torch.zeros(own_engine.image_embeds_shape), DecodingOptions())
    for result in ("stop", "length", "cancelled", "error"):
        telemetry.record_decoding(request, result)
    telemetry.record_response("a", images=3, seconds=0.1)
    refusals = [
        Gone(),
        InvalidInput("no"),
        InvalidImage("bad"),
        Overloaded("full"),
        TimedOut("late"),
        BlipstreamError("dead"),
    ]
    for refusal in refusals:
        telemetry.record_refusal("a", refusal)
    assert telemetry.results == {"ok": 3, "cancelled": 2, "invalid": 2, "overloaded": 2, "error": 2}


def test_spans(own_engine: Engine, traces: Collector) -> None:
    """They continue the sender's trace, one after the other."""
    request = decode(own_engine, request_id="a", trace_context=CONTEXT)
    assert traces.services == {"blipstream"}
    assert [span.name for span in traces.spans] == ["wait for rows", "decode"]
    waiting, decoding = traces.spans
    for span in traces.spans:
        assert span.trace_id.hex() == TRACE
        assert span.parent_span_id.hex() == PARENT
    assert waiting.start_time_unix_nano == request.arrived
    assert waiting.end_time_unix_nano == decoding.start_time_unix_nano == request.admitted
    assert decoding.end_time_unix_nano > decoding.start_time_unix_nano
    values: dict[str, Any] = {each.key: each.value for each in decoding.attributes}
    assert values["request.id"].string_value == "a"
    assert values["result"].string_value == "length"
    assert values["tokens"].int_value == 3


@pytest.mark.parametrize("context", ["", "no JSON", "{}"])
def test_without_a_trace(context: str, own_engine: Engine, traces: Collector) -> None:
    """Spans have no parent then, and captions come all the same."""
    assert decode(own_engine, trace_context=context).captions
    assert all(not span.parent_span_id for span in traces.spans)


def test_opentelemetry_is_missing() -> None:
    code = """
import sys
sys.modules["opentelemetry.sdk"] = None
from blipstream.errors import ServerError
from blipstream.serving.telemetry import Telemetry
try:
    Telemetry("decoder")
except ServerError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {ENDPOINT: "http://localhost:1"},
    )
    assert result.stdout == (
        f"{ENDPOINT} asks for the engine's spans, which need OpenTelemetry: {how_to_install('tracing')}\n"
    )
