"""Statements in clients' spans: no literal passes the gateway, everything else does, unchanged."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from quayscope.sidecar.gateway.literals import without_literals
from secret_statements import corpus, shows


def _text(key: str, value: str) -> KeyValue:
    pair = KeyValue(key=key)
    pair.value.string_value = value
    return pair


def _request(*spans: Span) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.scope.name = "pgx"
    scope.spans.extend(spans)
    return request


def _span(name: str, *attributes: KeyValue) -> Span:
    span = Span(name=name, trace_id=b"t" * 16, span_id=b"s" * 8, start_time_unix_nano=1, end_time_unix_nano=2)
    span.attributes.extend(attributes)
    span.kind = Span.SPAN_KIND_CLIENT
    span.flags = 257
    span.dropped_events_count = 3
    return span


def _passed(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(without_literals(request.SerializeToString()))


def test_no_secret_of_the_corpus_passes() -> None:
    """Under every attribute, in the span's name, its events and its status: 2,000 statements."""
    spans = []
    secrets = []
    for statement, secret in corpus():
        text = statement.encode("utf-8", "replace").decode()
        span = _span(f"query {text}", _text("db.system", "postgresql"), _text("db.query.text", text))
        span.attributes.append(_text("db.statement.parameters", f"('{secret}',)"))
        event = span.events.add(name="exception")
        event.attributes.append(_text("exception.message", f'invalid input: "{secret}"\nLINE 1: {text}'))
        span.status.message = f"duplicate key\nDETAIL:  Key (a)=({secret}) already exists."
        spans.append(span)
        secrets.append(secret)
    passed = _passed(_request(*spans)).resource_spans[0].scope_spans[0].spans
    for span, secret in zip(passed, secrets, strict=True):
        assert not shows(str(span).replace("1000000000000000", ""), secret), span
        assert span.status.message == "duplicate key"


def _failed(kind: str, message: str, stack: str) -> Span:
    """A request's span that an exception went through."""
    span = _span("GET /a", _text("http.route", "/a"))
    event = span.events.add(name="exception")
    for key, value in (("type", kind), ("message", message), ("stacktrace", stack)):
        event.attributes.append(_text(f"exception.{key}", value))
    span.status.message = f"{kind.rpartition('.')[2]}: {message}"
    return span


@pytest.mark.parametrize(
    ("kind", "message", "told"),
    [
        (
            "psycopg2.errors.SyntaxError",
            "syntax error at or near \"k3k3\"\nLINE 1: SELECT 'k3k3'\n  ^\n",
            "syntax error at or near ?",
        ),
        # What is quoted has quotes and lines of its own.
        (
            "psycopg2.errors.SyntaxError",
            'unterminated at or near ""k3k3\nx"\nLINE 1: k3k3',
            "unterminated at or near ?",
        ),
        ("psycopg2.errors.SyntaxError", 'at or near "\'a" k3k3\nx"\nLINE 1: k3k3', "at or near ?"),
        # Wrapped by what stands above the driver.
        ("RuntimeError", "failed: value 7777 is odd\nDETAIL:  Key (a)=(k3k3)", "failed: value ? is odd"),
        ("sqlalchemy.exc.DataError", "invalid: 'k3k3'\n[SQL: select k3k3]", "invalid: ?"),
        ("*pgconn.PgError", 'ERROR: invalid: "k3k3" (SQLSTATE 22P02)', "ERROR: invalid: ? (SQLSTATE 22P02)"),
    ],
)
def test_a_database_error_in_a_span_above_tells_no_literal(kind: str, message: str, told: str) -> None:
    """Its first line stays without what it quotes, its stack as the places of its calls; the name stays."""
    calls = '  File "/app/views.py", line 12, in get\n  File "/app/db.py", line 99, in <module>'
    stack = f"Traceback (most recent call last):\n{calls}\n    cursor.execute('k3k3')\n{kind}: {message}\n"
    span = _failed(kind, message, stack)
    (passed,) = _passed(_request(span)).resource_spans[0].scope_spans[0].spans
    found = {one.key: one.value.string_value for one in passed.events[0].attributes}
    assert found["exception.message"] == told
    assert found["exception.stacktrace"] == f"Traceback (most recent call last):\n{calls}"
    assert passed.status.message == f"{kind.rpartition('.')[2]}: {told}"
    assert (passed.name, passed.attributes) == (span.name, span.attributes)


def test_what_is_no_statement_passes_unchanged() -> None:
    """Other spans, numbers of every wire type, resources and scopes are the same; so are plain names."""
    web = _span("GET /a/12345", _text("http.route", "/a/<b>"), _text("note", "it's 12345"))
    web.events.add(name="exception").attributes.append(_text("exception.message", "it's 'quoted' 12345"))
    count = KeyValue(key="count")
    count.value.int_value = -5
    share = KeyValue(key="share")
    share.value.double_value = 0.25
    plain = _span("SELECT quay.users", _text("db.system", "postgresql"), count, share)
    plain.links.add(trace_id=b"l" * 16, span_id=b"m" * 8)
    request = _request(web, plain)
    assert _passed(request) == request
    (span,) = (
        _passed(_request(_span("x", _text("db.statement", "SELECT 'a', b"))))
        .resource_spans[0]
        .scope_spans[0]
        .spans
    )
    assert span.attributes[0].value.string_value == "select ?, b"
