"""SQL: how long each statement blocked the worker, whose it was, and the comment that the server sees."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from integration.agent.serving import Gunicorn, Kept
from quayscope.profile import BLOCK
from quayscope.profile.statement import normalize
from quayscope.relay import Relay

Serve = Callable[..., Gunicorn]

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-00", "baggage": "x=1, run=r%201 ,phase=warm;p=1"}


@pytest.mark.parametrize("tracing", ["auto", "off"])
def test_stalls_are_measured(serve: Serve, relay: Relay, kept: Kept, tracing: str) -> None:
    """Sleeps in the database are measured, with statement, stack, endpoint, run and phase."""
    gunicorn = serve("--preload", environment={"QUAYSCOPE_TRACING": tracing})
    began = time.monotonic_ns()
    assert gunicorn.get_often("/sleep/0.05", 20, HEADERS) == [200] * 20
    asked = time.monotonic_ns() - began
    assert gunicorn.stop() == 0
    relay.close(5.0)
    slept = connected = committed = calls = 0
    for stack, attributes, (count, delay) in kept.samples(BLOCK.name):
        statement = stack[-1]
        if statement.kind == "wait":
            continue  # a hub that was kept: by the worker's start, mostly
        assert statement.kind == "sql"
        assert attributes[1:4] == ("GET /sleep/<float:seconds>", "r 1", "warm")
        assert "sleep" in [frame.function.rpartition(".")[2] for frame in stack]
        assert not any("/quayscope/agent/" in frame.file for frame in stack)
        if statement.function == "select pg_sleep(?)":
            slept, calls = slept + delay, calls + count
        connected += count if statement.function == "[connect]" else 0
        committed += count if statement.function == "commit" else 0
    assert 1.0e9 < slept < asked  # a busy machine wakes late; how exact it is, is another test's affair
    assert (calls, connected, committed) == (20, 20, 20)
    counts = kept.counts()
    assert (counts["statements"], counts["connections"], counts.get("faults", 0)) == (40, 20, 0)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("plain", "SELECT current_query(), '100%'"),
        ("parameters", "SELECT current_query(), 'kept', '100%'"),
        ("bytes", "SELECT current_query(), 1"),
        ("composed", "SELECT current_query(), 'kept'::text AS \"na%me\""),
        ("factory", "SELECT current_query(), '100%'"),
        ("default", "SELECT current_query(), '100%'"),
    ],
)
def test_the_server_sees_the_comment(shared: Gunicorn, form: str, text: str) -> None:
    """The comment stands in front of each statement, percent signs right, the statement untouched."""
    seen = shared.json(f"/seen/{form}", HEADERS)
    fingerprint = normalize(text).fingerprint
    # Percent-encoded with the space kept, as docs/wire.md says.
    pairs = f"fp='{fingerprint}',route='GET /seen/<form>',trace='{TRACE}',run='r 1',phase='warm'"
    assert seen == f"/*quayscope:{pairs}*/ {text}"


def test_a_refused_statement_is_refused_as_without_us(shared: Gunicorn) -> None:
    """An empty statement and a broken one fail with the driver's and the server's own words."""
    assert shared.json("/seen/empty") == "can't execute an empty query"
    assert shared.json("/broken-statement") == 'relation "nowhere" does not exist'


def test_the_comment_can_be_switched_off(serve: Serve, relay: Relay) -> None:
    """With QUAYSCOPE_SQL_COMMENT=off statements go to the database unchanged."""
    gunicorn = serve(environment={"QUAYSCOPE_SQL_COMMENT": "off"})
    assert gunicorn.json("/seen/plain", HEADERS) == "SELECT current_query(), '100%'"


def test_literals_stay_in_the_worker(serve: Serve, relay: Relay, kept: Kept) -> None:
    """Neither stalls nor spans hold a literal of a statement or a query string."""
    gunicorn = serve(environment={"QUAYSCOPE_TRACING": "auto"})
    gunicorn.get(
        "/broken-statement?token=hunter2", HEADERS | {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    )
    assert gunicorn.stop() == 0
    relay.close(5.0)
    assert kept.spans_kept()
    assert any(stack[-1].function.startswith("select secret_value") for stack, *_ in kept.samples(BLOCK.name))
    assert b"hunter2" not in b"".join(trace.SerializeToString() for trace in kept.traces)
    assert "hunter2" not in repr(kept.made) + gunicorn.log()
