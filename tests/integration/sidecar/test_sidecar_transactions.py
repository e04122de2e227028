"""Requests of statements without a comment, by their transaction, on real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from postgres.reading import ROUTES, postmaster_of, reader_of
from quayscope.profile import Attributes, Profile
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.postgres.sessions import Sessions
from quayscope.sidecar.statements import INHERITED
from quayscope.sidecar.windows import Windows

COMMENT = "/*quayscope:fp='0123456789abcdef',route='PUT /a',trace='0af7651916cd43dd8448eb211c80319c'*/"


@pytest.fixture(scope="module", params=["13", "15", "18"])
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Any:
    """A server with a table whose rows are looked at, slowly, when their transaction ends."""
    server = server_of(request.param)
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS late")
        connection.execute("CREATE TABLE late (n int)")
        connection.execute(
            "CREATE OR REPLACE FUNCTION look() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN PERFORM pg_sleep(20); RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER looked AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION look()"
        )
    return server


@contextmanager
def _committing(server: Any, *statements: str) -> Iterator[int]:
    """Run the statements in one transaction, whose COMMIT then takes its time; yields the backend's pid."""
    connection = psycopg.connect(server.dsn)
    for statement in statements:
        connection.execute(statement.encode())

    def end() -> None:
        with pytest.raises(psycopg.Error):
            connection.commit()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    try:
        yield connection.info.backend_pid
    finally:
        connection.cancel()
        thread.join(10)
        connection.close()


def _insert(comment: str = "") -> str:
    return f"{comment} INSERT INTO late VALUES (1)".strip()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("statements", "rest"),
    [
        ((_insert(COMMENT),), COMMENT),
        ((f"{COMMENT} SELECT 1", _insert()), ""),
        ((_insert(COMMENT), "SELECT 1"), ""),
        ((_insert(COMMENT), f"{COMMENT.replace('/a', '/b')} SELECT 1"), COMMENT.replace("/a", "/b")),
    ],
    ids=["own", "uncommented", "broken by a short one", "the last"],
)
def test_a_commit_shows_the_comment_before(
    server: Any, route: str, statements: tuple[str, ...], rest: str, until: Callable[..., Any]
) -> None:
    """By both routes: the last statement's comment, and nothing where that had none; a copy too."""
    with _committing(server, *statements) as pid, reader_of(server, route) as reader:

        def ends() -> Any:
            reader.sweep()
            slot = reader.look(pid)
            return slot if slot is not None and slot.statement.text == "COMMIT" and slot.active else None

        slot = until(ends)
        assert slot.rest == rest
        peek = reader.peek(pid)
        assert peek is not None
        glance = reader.glance(peek)
        assert glance is not None
        assert (glance.rest, glance.transaction_start_ns) == (rest, slot.transaction_start_ns)
        copy, _ = reader.copier(peek)
        assert reader.copied(peek.number, peek.server_pid, copy()) == glance
        assert 0 < slot.transaction_start_ns < slot.query_start_ns


def _waits(profiles: list[Profile]) -> Iterator[tuple[tuple[str, ...], Attributes]]:
    for profile in profiles:
        for stack, attributes in profile.samples:
            yield tuple(frame.function for frame in stack[1:]), attributes


@pytest.mark.parametrize("seen", [False, True])
def test_waits_inherit_their_request(server: Any, seen: bool, until: Callable[..., Any]) -> None:
    """A COMMIT's wait is its transaction's request's, marked so; also where the comment was seen before."""
    profiles: list[Profile] = []
    windows = Windows({"service_name": "db", "sampler": "sessions"}, 10, profiles.extend)
    sessions = Sessions(postmaster_of(server), Capabilities(), windows, lambda _: None, service="db")
    slept = f"{COMMENT} SELECT pg_sleep(0.5)"
    statements = (slept, "INSERT INTO late VALUES (1)") if seen else (_insert(COMMENT),)
    assert sessions.start()
    try:
        with _committing(server, *statements):
            until(lambda: sessions.counts()["requests_inherited"] > 20)
    finally:
        sessions.close(5)
    windows.flush()
    assert sessions.faults == 0
    found = {stack: attributes for stack, attributes in _waits(profiles) if stack[0] == "commit"}
    ((stack, attributes),) = found.items()
    assert stack == ("commit", INHERITED.function, "Timeout:PgSleep")
    assert (attributes.endpoint, attributes.trace_id) == ("PUT /a", "0af7651916cd43dd8448eb211c80319c")
    own = [stack for stack, one in _waits(profiles) if one.endpoint and INHERITED.function not in stack]
    assert own or not seen
