"""The stock profiler in the same application, set up as its manual says: in the worker, after the fork.

A gunicorn configuration: pyroscope-io with the implementation that STOCK_IMPLEMENTATION names, and
pyroscope-otel beside OpenTelemetry's Flask instrumentation, every request traced.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyroscope

SERVER = "STOCK_SERVER"
IMPLEMENTATION = "STOCK_IMPLEMENTATION"
REPORT = "STOCK_REPORT"
"""File for what the kernel says of the worker: its CPU while it was profiled, in nanoseconds."""

bind = "127.0.0.1:0"
_began: list[int] = []


def post_worker_init(_: Any) -> None:
    from opentelemetry import trace
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from pyroscope.otel import PyroscopeSpanProcessor

    from integration.agent import accuracy_app

    started = pyroscope.configure(
        application_name="stock",
        server_address=os.environ[SERVER],
        cpu_implementation=getattr(pyroscope.ProfilerImplementation, os.environ[IMPLEMENTATION]),
    )
    _began.append(time.process_time_ns())
    assert started
    provider = TracerProvider()
    provider.add_span_processor(PyroscopeSpanProcessor())
    trace.set_tracer_provider(provider)
    instrument_app: Any = FlaskInstrumentor().instrument_app
    instrument_app(accuracy_app.app)


def worker_exit(_: Any, __: Any) -> None:
    if _began:
        used = time.process_time_ns() - _began[0]
        pyroscope.shutdown()  # sends what it has
        Path(os.environ[REPORT]).write_text(json.dumps({"cpu_ns": used}))
