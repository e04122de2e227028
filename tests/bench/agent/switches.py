"""What the application can turn on and off in a worker while it serves, beside our agent: the stock tools."""

from __future__ import annotations

import os
from typing import Any

import pyroscope
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from pyroscope.otel import PyroscopeSpanProcessor

TRACE_RATIO = 0.001
SERVER = "BENCH_PUSH_SERVER"
"""Where pyroscope-io pushes to; without it OpenTelemetry stands alone."""
OTEL = "otel"


class _Nowhere(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def trace_requests() -> None:
    """Give this worker a provider, as Quay does: one request of a thousand, exported from a thread."""
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(TRACE_RATIO)))
    provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    if os.environ.get(SERVER):
        provider.add_span_processor(PyroscopeSpanProcessor())
    trace.set_tracer_provider(provider)


def turn(app: Any, name: str, *, on: bool) -> bool:
    """Turn `otel`, `PySpy` or `Stack` on or off; returns whether it did what it was asked."""
    if name == OTEL:
        flask: Any = FlaskInstrumentor()
        if on:
            app._got_first_request = False  # Flask takes no hooks later on; here they come again
            Psycopg2Instrumentor().instrument(skip_dep_check=True, enable_commenter=False)
            flask.instrument_app(app)
        else:
            Psycopg2Instrumentor().uninstrument()
            flask.uninstrument_app(app)
        return True
    if not on:
        return bool(pyroscope.shutdown())
    return bool(
        pyroscope.configure(
            application_name="bench",
            server_address=os.environ[SERVER],
            cpu_implementation=getattr(pyroscope.ProfilerImplementation, name),
            tags={"worker": str(os.getpid())},
        )
    )
