# SPDX-License-Identifier: Apache-2.0
"""What became of each request: counts, a line of JSON in the server's log, and spans for an OpenTelemetry collector.

The latter two are off unless asked for, by LOG_REQUESTS and by OpenTelemetry's own variable.
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

from blipstream.errors import Gone, InvalidInput, Overloaded, ServerError, Stopping, TimedOut

if TYPE_CHECKING:  # the server reads the names below and needs no engine
    from blipstream.decoding import Request

LOG_REQUESTS = "BLIPSTREAM_LOG_REQUESTS"  # any value
SERVICE = "blipstream"
ID_LENGTH = 64  # characters that are kept of a request's id
ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"  # as http://localhost:4318/v1/traces

COUNTER = "blipstream_requests_total"
RESULTS = ("ok", "cancelled", "invalid", "overloaded", "error")  # that are counted; the last is the server's fault
REFUSALS = ("cancelled", "invalid")  # these are their senders'
RESULT_OF = {
    "ok": "ok", "stop": "ok", "length": "ok", "cancelled": "cancelled",
    Gone: "cancelled", InvalidInput: "invalid",
    Overloaded: "overloaded", Stopping: "overloaded", TimedOut: "overloaded",
}  # fmt: skip


class Journal:
    """Of one model's requests."""

    def __init__(self, model: str) -> None:
        """Raises ServerError where spans are asked for and OpenTelemetry is not installed."""
        self.results = Counter(dict.fromkeys(RESULTS, 0))
        self._counting = Lock()
        self._model = model
        self._logs = bool(os.environ.get(LOG_REQUESTS))
        self._provider = _provider() if os.environ.get(ENDPOINT) else None
        self._tracer: Any = self._provider.get_tracer("blipstream") if self._provider else None

    def record(self, request: "Request", result: str) -> None:
        """A request has ended: `stop`, `length`, `cancelled` or `error`."""
        self._count(result)
        if not self._logs and not self._tracer:
            return
        ended = time.time_ns()
        admitted = request.admitted or ended  # it may never have had rows
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

    def refuse(self, request_id: str, error: Exception) -> None:
        """A request was refused before there was any work on it."""
        self._count(type(error))
        self._log(request_id, {"result": "refused", "error": str(error)})

    def answer(self, request_id: str, images: int, seconds: float) -> None:
        """A request for so many images was answered, by a batch that took so long."""
        self._count("ok")
        self._log(request_id, {"result": "ok", "images": images, "batch_ms": round(seconds * 1e3, 3)})

    @contextmanager
    def span(self, name: str, request_id: str, trace_context: str) -> Iterator[None]:
        """A span as long as this lasts, in the trace that Triton began."""
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
        """One with its times, in nanoseconds since 1970; none for a request that Triton does not trace."""
        if not self._tracer or not trace_context:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(json.loads(trace_context))
        attributes = {"request.id": request_id} | facts
        span = self._tracer.start_span(name, parent, start_time=start, attributes=attributes)
        span.end(end)


def id_of(request: Any) -> str:  # noqa: ANN401
    """What a sender calls a request of Triton's, cut short: nothing, where that is no text, which HTTP lets pass."""
    try:
        return str(request.request_id())[:ID_LENGTH]
    except UnicodeDecodeError:
        return ""


def _provider() -> Any:  # noqa: ANN401
    """Of tracers whose spans are sent in the background, to where OpenTelemetry's variables say."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ServerError(
            f"{ENDPOINT} asks for the engine's spans, which need OpenTelemetry: pip install 'blipstream[tracing]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
