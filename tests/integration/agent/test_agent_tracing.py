"""Spans: ours where the application makes none, its own where it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.agent.serving import Gunicorn, Kept
from quayscope.profile import BLOCK
from quayscope.relay import Relay

Serve = Callable[..., Gunicorn]

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
SERVER, CLIENT = 2, 3
ON = {"QUAYSCOPE_TRACING": "auto"}


@pytest.mark.parametrize(
    ("preload", "application"),
    [(True, "agent_app:app"), (False, "agent_app:app"), (True, "agent_app:wrapped")],
)
def test_spans_have_their_parents(
    serve: Serve, relay: Relay, kept: Kept, preload: bool, application: str
) -> None:
    """A request's span is the caller's child, the statement's span its child, and samples carry its id."""
    arguments = ["--preload"] if preload else []
    gunicorn = serve(*arguments, environment=ON, application=f"integration.agent.{application}")
    began = time.monotonic_ns()
    assert gunicorn.get("/sleep/0.02", SAMPLED)[0] == 200
    asked = time.monotonic_ns() - began
    assert gunicorn.stop() == 0
    relay.close(5.0)
    spans = [span for span in kept.spans_kept() if span.trace_id.hex() == TRACE]
    (server,) = [span for span in spans if span.kind == SERVER]
    (client,) = [span for span in spans if span.kind == CLIENT]
    assert server.name == "GET /sleep/<float:seconds>"
    assert server.parent_span_id.hex() == CALLER
    assert client.parent_span_id == server.span_id
    assert 20e6 < client.end_time_unix_nano - client.start_time_unix_nano < asked
    statements = [about for stack, about, _ in kept.samples(BLOCK.name) if stack[-1].kind == "sql"]
    ids = {(about.trace_id, about.span_id) for about in statements}
    assert ids == {(TRACE, server.span_id.hex())}
    assert kept.counts().get("faults", 0) == 0


def test_unsampled_requests_keep_their_trace(serve: Serve, relay: Relay, kept: Kept) -> None:
    """A trace that was not sampled makes no spans, but its samples carry its id."""
    gunicorn = serve("--preload", environment=ON)
    assert gunicorn.get("/sleep/0.02", UNSAMPLED)[0] == 200
    assert gunicorn.stop() == 0
    relay.close(5.0)
    assert TRACE not in {span.trace_id.hex() for span in kept.spans_kept()}
    statements = [about for stack, about, _ in kept.samples(BLOCK.name) if stack[-1].kind == "sql"]
    assert {(about.trace_id, about.span_id) for about in statements} == {(TRACE, "")}


def test_the_applications_own_tracing_stays(serve: Serve, relay: Relay, kept: Kept, tmp_path: Path) -> None:
    """A provider that a gunicorn hook sets up keeps its exporter; its spans come to us as well, once each."""
    exported = tmp_path / "spans"
    gunicorn = serve(
        "--preload",
        "--config=python:integration.agent.own_tracing",
        environment={**ON, "AGENT_TEST_SPANS": str(exported)},
    )
    assert gunicorn.get("/sleep/0.0", SAMPLED)[0] == 200
    assert gunicorn.stop() == 0
    relay.close(5.0)
    # psycopg2 was left as the application had it.
    assert [span.name for span in kept.spans_kept() if span.trace_id.hex() == TRACE] == [
        "GET /sleep/<float:seconds>"
    ]
    assert "GET /sleep/<float:seconds>" in exported.read_text().splitlines()
    assert "not allowed" not in gunicorn.log()
