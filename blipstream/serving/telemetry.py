# SPDX-License-Identifier: Apache-2.0
"""What became of each request: counts, a line of JSON in the server's log, and spans for an OpenTelemetry collector.

Lines and spans are off by default. The environment variables LOG_REQUESTS and ENDPOINT turn them on.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

from blipstream.errors import Gone, InvalidImage, InvalidInput, Overloaded, ServerError, Stopping, TimedOut
from blipstream.extras import how_to_install

if TYPE_CHECKING:  # the server reads the names below, and must not import torch
    from blipstream.decoding import Request

LOG_REQUESTS = "BLIPSTREAM_LOG_REQUESTS"  # any value
SERVICE = "blipstream"
ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"  # as http://localhost:4318/v1/traces

COUNTER = "blipstream_requests_total"
RESULTS = ("ok", "cancelled", "invalid", "overloaded", "error")  # "error" is the server's fault
REFUSALS = ("cancelled", "invalid")  # the sender's fault
RESULT_OF = {
    "ok": "ok", "stop": "ok", "length": "ok", "cancelled": "cancelled",
    Gone: "cancelled", InvalidInput: "invalid", InvalidImage: "invalid",
    Overloaded: "overloaded", Stopping: "overloaded", TimedOut: "overloaded",
}  # fmt: skip


class Telemetry:
    """Counts, logs and traces the requests of one model."""

    def __init__(self, model: str) -> None:
        """Raises ServerError if spans are turned on and OpenTelemetry is not installed."""
        self.results = Counter(dict.fromkeys(RESULTS, 0))
        self._counting = Lock()
        self._model = model
        self._logs = bool(os.environ.get(LOG_REQUESTS))
        self._provider = _provider() if os.environ.get(ENDPOINT) else None
        self._tracer: Any = self._provider.get_tracer("blipstream") if self._provider else None

    def record_decoding(self, request: "Request", result: str) -> None:
        """A request has left the scheduler; `result` is `stop`, `length`, `cancelled` or `error`."""
        self._count(result)
        if not self._logs and not self._tracer:
            return
        ended = time.time_ns()
        admitted = request.admitted or ended  # it may have left before it had rows
        facts = {
            "result": result,
            "strategy": request.options.strategy,
            "captions": len(request.captions),
            "tokens": sum(caption.num_tokens for caption in request.captions),
        }
        waited, decoded = (admitted - request.arrived) / 1e6, (ended - admitted) / 1e6
        self._log(request.id, facts | {"waited_ms": round(waited, 3), "decoded_ms": round(decoded, 3)})
        trace = request.id, request.trace_context
        self._span("wait for rows", *trace, request.arrived, admitted, {})
        if ended > admitted:
            self._span("decode", *trace, admitted, ended, facts)

    def record_refusal(self, request_id: str, error: Exception) -> None:
        """A request got an error before any work was done for it."""
        self._count(type(error))
        self._log(request_id, {"result": "refused", "error": str(error)})

    def record_response(self, request_id: str, images: int, seconds: float) -> None:
        """A request for so many images got its response, from a batch that took so long."""
        self._count("ok")
        self._log(request_id, {"result": "ok", "images": images, "batch_ms": round(seconds * 1e3, 3)})

    @contextmanager
    def span(self, name: str, request_id: str, trace_context: str) -> Iterator[None]:
        """A span of what the block does, in the trace that Triton began."""
        began = time.time_ns()
        yield
        self._span(name, request_id, trace_context, began, time.time_ns(), {})

    def close(self) -> None:
        """Send the last spans."""
        if self._provider:
            self._provider.shutdown()

    def _count(self, end: str | type[Exception]) -> None:
        with self._counting:
            self.results[RESULT_OF.get(end, "error")] += 1

    def _log(self, request_id: str, facts: dict[str, Any]) -> None:
        if self._logs:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": moment, "model": self._model, "request": request_id} | facts)
            with suppress(OSError):  # a full disk loses lines, not requests
                print(line, flush=True)

    def _span(
        self, name: str, request_id: str, trace_context: str, start: int, end: int, facts: dict[str, Any]
    ) -> None:
        """A span from `start` to `end`, in nanoseconds since 1970, if Triton traces the request."""
        if not self._tracer or not trace_context:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(json.loads(trace_context))
        attributes = {"request.id": request_id} | facts
        span = self._tracer.start_span(name, parent, start_time=start, attributes=attributes)
        span.end(end)


def _provider() -> Any:  # noqa: ANN401
    """A provider whose spans are sent in the background, to where OpenTelemetry's variables say."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ServerError(
            f"{ENDPOINT} asks for the engine's spans, which need OpenTelemetry: {how_to_install('tracing')}"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
