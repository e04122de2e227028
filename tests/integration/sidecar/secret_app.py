"""Runs whatever statement it is sent, traced by OpenTelemetry's own instrumentations beside the agent.

A statement stays for some sweeps: its transaction is open until others had their turn.
"""

from __future__ import annotations

import io
import os
from typing import Any

import gevent
import psycopg2
from flask import Flask, request
from psycopg2 import extensions

app = Flask(__name__)
_STAYS_S = 0.025


def set_up_tracing() -> None:
    """Trace everything, parameters too, and send it to the gateway; to be called in a worker."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"{os.environ['SECRET_GATEWAY']}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    Psycopg2Instrumentor().instrument(capture_parameters=True, enable_commenter=True)
    instrument: Any = FlaskInstrumentor().instrument_app
    instrument(app)


def _copied(text: str) -> tuple[str, str] | None:
    """Return the command and the data of a COPY from the client, which `execute` does not send."""
    head, semicolon, data = text.partition(";\n")
    if semicolon and head.lower().startswith("copy") and "stdin" in head.lower():
        return head, data.partition("\\.")[0]
    return None


def _run(connection: extensions.connection, text: str, secret: str) -> None:
    with connection.cursor() as cursor:
        try:
            copied = _copied(text)
            if copied is None:
                cursor.execute(text)
            else:
                cursor.copy_expert(copied[0], io.StringIO(copied[1]))
        finally:
            gevent.sleep(_STAYS_S)
            connection.rollback()
        cursor.execute("SELECT * FROM users WHERE token = %s AND id::text = %s", (secret, secret))
        connection.commit()


@app.post("/run/<how>")
def run(how: str) -> str:
    """Run the body's statement: `kept` answers its error, `raised` lets it pass to Flask."""
    secret, text = request.get_data(as_text=True).split("\n", 1)
    connection = psycopg2.connect(os.environ["SECRET_DSN"])
    try:
        _run(connection, text, secret)
    except psycopg2.Error as error:
        if how == "raised":
            # As libraries above the driver do: what they raise has the driver's error within.
            raise RuntimeError(f"could not run it: {error}") from error
        return type(error).__name__
    finally:
        connection.close()
    return "ran"


@app.get("/")
def ready() -> str:
    return "ready"


def post_worker_init(_: Any) -> None:
    """gunicorn's hook."""
    set_up_tracing()
