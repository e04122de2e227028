"""The same application with OpenTelemetry of its own, set up where its manual says: in a gunicorn hook."""

from __future__ import annotations

import os
from typing import Any

bind = "127.0.0.1:0"


def post_worker_init(_: Any) -> None:
    from opentelemetry import trace
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    from integration.agent import agent_app

    class ToFile(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            with open(os.environ["AGENT_TEST_SPANS"], "a") as file:
                for span in spans:
                    assert isinstance(span, ReadableSpan)
                    file.write(f"{span.name}\n")
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)
    instrument_app: Any = FlaskInstrumentor().instrument_app
    instrument_app(agent_app.app)
