"""Spans: the application's OpenTelemetry where it has set one up, else ours, with the stock instrumentations.

Spans are kept in memory and written to the relay like everything else: nothing is exported from a worker.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quayscope.agent.context import current
from quayscope.agent.faults import add, fault, guarded
from quayscope.profile.statement import normalize, operation

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["SpanKeeper", "span_rows", "start_tracing"]

PROFILE_ID = "pyroscope.profile.id"
"""Span attribute by which a Pyroscope data source finds the samples of a span (grafana/otel-profiling)."""
MAX_SPANS = 4_096
"""Finished spans kept until they are written, at most once a second."""
_STATEMENT_KEYS = ("db.statement", "db.query.text", "db.query.summary")
_ADDRESS_KEYS = ("http.target", "http.url", "url.full")
_QUERY_KEYS = ("url.query", "db.statement.parameters", "db.query.parameter", "db.operation.parameter")
"""How the keys of what may hold secrets begin."""
_MAX_TEXT = 1_000
_MIDDLEWARES = 16


class SpanKeeper:
    """A span processor beside the application's own: notes the request's span, keeps finished ones."""

    def __init__(self) -> None:
        self._finished: deque[ReadableSpan] = deque()
        self.running = True

    def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002 - the SDK's signature
        """Note the ids of a request's own span, and mark it as the one that its samples name."""
        guarded(_note, span)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a finished span."""
        if not self.running:
            return
        if len(self._finished) < MAX_SPANS:
            self._finished.append(span)
        else:
            guarded(add, "spans_dropped")

    def _on_ending(self, span: Any) -> None:
        """Do nothing: newer SDKs call this before `on_end`."""

    def shutdown(self) -> None:
        """Do nothing: what is kept is written by the agent."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Do nothing: there is nothing to wait for."""
        return True

    def take(self) -> dict[str, list[ReadableSpan]]:
        """Return the finished spans by instrumentation scope; `span_rows` turns them into what is written."""
        scopes: dict[str, list[ReadableSpan]] = {}
        while self._finished:
            span = self._finished.popleft()
            scope = span.instrumentation_scope
            scopes.setdefault(scope.name if scope else "", []).append(span)
        return scopes


def _note(span: Any) -> None:
    request = current()
    if request is not None and not request.span_id and span.kind.name == "SERVER":
        context = span.get_span_context()
        request.trace_id = format(context.trace_id, "032x")
        request.span_id = format(context.span_id, "016x")
        span.set_attribute(PROFILE_ID, request.span_id)


def span_rows(spans: list[ReadableSpan]) -> Iterator[list[Any]]:
    """Yield a row a span, made when it is asked for: a second's spans at once would hold up the hub."""
    for span in spans:
        try:
            yield _row(span)
        except Exception as error:  # noqa: BLE001 - one odd span must not cost the others
            fault(error)


def _row(span: ReadableSpan) -> list[Any]:
    context = span.get_span_context()
    assert context is not None
    parent = span.parent
    attributes = _attributes(span)
    name = operation(span.name) if any(key.startswith("db.") for key in attributes) else span.name
    return [
        format(context.trace_id, "032x"),
        format(context.span_id, "016x"),
        format(parent.span_id, "016x") if parent else "",
        name[:_MAX_TEXT],
        span.kind.value + 1,  # OTLP begins with "unspecified"
        span.start_time or 0,
        span.end_time or 0,
        span.status.status_code.value,
        attributes,
    ]


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in (span.attributes or {}).items():
        if key in _STATEMENT_KEYS:
            kept[key] = normalize(str(value)[: 8 * _MAX_TEXT]).text[:_MAX_TEXT]
        elif key.startswith(_QUERY_KEYS):
            continue  # a query string may hold a token
        elif key in _ADDRESS_KEYS:
            kept[key] = str(value).partition("?")[0][:_MAX_TEXT]
        elif isinstance(value, str):
            kept[key] = value[:_MAX_TEXT]
        elif isinstance(value, (bool, int, float)):
            kept[key] = value
    return kept


def load_sdk() -> None:
    """Import what `start_tracing` may need, where it is installed."""
    try:
        import opentelemetry.instrumentation.flask
        import opentelemetry.instrumentation.psycopg2
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        pass


def start_tracing(application: Any, ratio: float) -> SpanKeeper | None:
    """Stand beside the application's provider, or have one of our own; None where there is no SDK.

    To be called when the application is loaded and has had its chance to set up its own. Ours is not made
    the global one: an application that sets up its own later still can. `ratio` of the requests that no
    caller decided on are traced by ours, unless `OTEL_TRACES_SAMPLER` says otherwise.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    # Made here, since the SDK's class is only known where the SDK is.
    keeper = type("QuayscopeSpanKeeper", (SpanKeeper, SpanProcessor), {})()
    if isinstance(provider, TracerProvider):
        provider.add_span_processor(keeper)
    else:
        provider = TracerProvider(sampler=_sampler(ratio))
        provider.add_span_processor(keeper)
        _instrument_psycopg2(provider)
        _instrument_flask(application, provider)
    assert isinstance(keeper, SpanKeeper)
    return keeper


def _sampler(ratio: float) -> Any:
    """Return our sampler; None where the environment names one, which the SDK then takes."""
    if os.environ.get("OTEL_TRACES_SAMPLER"):
        return None
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    return ParentBased(TraceIdRatioBased(ratio))


def _instrument_psycopg2(provider: Any) -> None:
    try:
        from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
    except ImportError:
        return
    # No dependency check: it looks for a distribution by name and refuses psycopg2 built by hand.
    Psycopg2Instrumentor().instrument(tracer_provider=provider, skip_dep_check=True, enable_commenter=False)


def _instrument_flask(application: Any, provider: Any) -> None:
    """Instrument the Flask application behind a WSGI callable, unless it is already."""
    flask_application = _find_flask(application)
    if flask_application is None or getattr(flask_application, "_is_instrumented_by_opentelemetry", False):
        return
    try:
        from opentelemetry.instrumentation.flask import FlaskInstrumentor
    except ImportError:
        return
    instrument_app: Any = FlaskInstrumentor().instrument_app
    instrument_app(flask_application, tracer_provider=provider)


def _find_flask(application: Any) -> Any:
    """Return the Flask application inside the middlewares around it, or None."""
    flask = sys.modules.get("flask")
    for _ in range(_MIDDLEWARES):
        if flask is None or application is None:
            return None
        if isinstance(application, flask.Flask):
            return application
        # Where middlewares keep what they stand around; a bound method's object is the application.
        names = ("app", "application", "wsgi_app", "_app", "__wrapped__", "__self__")
        application = next((found for name in names if (found := getattr(application, name, None))), None)
    return None
