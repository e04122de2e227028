"""Backends read from shared memory, on real servers of every major: every field right, whole, at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from postgres.busy import Busy
from postgres.installs import MAJORS
from postgres.reading import ROUTES, reader_of, running, slot_of
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.slots import Slot

_VIEW = """
SELECT pid, coalesce(state, ''), coalesce(wait_event_type, ''), coalesce(wait_event, ''),
       coalesce(query, ''), coalesce(datname, ''), coalesce(usename, ''), application_name,
       coalesce(host(client_addr), ''), backend_type,
       (extract(epoch FROM backend_start) * 1000000)::bigint * 1000,
       coalesce((extract(epoch FROM xact_start) * 1000000)::bigint * 1000, 0),
       coalesce((extract(epoch FROM query_start) * 1000000)::bigint * 1000, 0),
       coalesce((extract(epoch FROM state_change) * 1000000)::bigint * 1000, 0),
       coalesce(leader_pid, 0), {query_id}
FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type <> 'archiver'
"""


def _rows(connection: psycopg.Connection[Any]) -> dict[int, tuple[Any, ...]]:
    query_id = "coalesce(query_id, 0)" if connection.info.server_version >= 140_000 else "0"
    return {row[0]: tuple(row[1:]) for row in connection.execute(_VIEW.format(query_id=query_id))}


def _as_row(slot: Slot) -> tuple[Any, ...]:
    session = slot.session
    return (
        slot.state,
        *slot.wait,
        slot.statement.text,
        *(session.database, session.user, session.application, session.client, session.backend_type),
        *(session.started_ns, slot.transaction_start_ns, slot.query_start_ns, slot.state_start_ns),
        *(slot.leader, slot.query_id),
    )


@pytest.fixture(scope="module", params=MAJORS)
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Any:
    """A server of each major, watching query ids where it can."""
    return server_of(request.param)


@pytest.mark.parametrize("route", ROUTES)
def test_agrees_with_the_view(server: Any, route: str, full: bool) -> None:
    """Every field of rows that the view shows alike just before and just after a sweep is right."""
    wanted = 5000 if full else 250
    names = OidNames()
    with Busy(server, 12), server.connect() as connection, reader_of(server, route, names) as reader:
        reader.sweep()
        names.learn(connection)
        reader._check_at = 0  # names are taken up with the next check
        stable = seen = 0
        wrong: Counter[Any] = Counter()
        deadline = time.monotonic() + (120 if full else 15)
        while stable < wanted and time.monotonic() < deadline:
            before = _rows(connection)
            slots = {slot.session.server_pid: _as_row(slot) for slot in reader.sweep()}
            after = _rows(connection)
            for pid, row in before.items():
                seen += 1
                if after.get(pid) == row:
                    stable += 1
                    got = slots.get(pid)
                    if got != row:
                        differ = (
                            "no slot"
                            if got is None
                            else [(a, b) for a, b in zip(got, row, strict=True) if a != b]
                        )
                        wrong[str(differ)] += 1
    print(f"{stable} stable of {seen}, {sum(wrong.values())} wrong, {dict(reader.counts)}")
    assert stable >= wanted
    # A backend may change and change back between two looks at the view.
    assert sum(wrong.values()) <= 0.01 * stable, wrong.most_common(5)
    assert not reader.counts["invalid"]


def test_parallel_workers_name_their_leader(server: Any, until: Callable[..., Any]) -> None:
    """A parallel worker's slot says whom it works for, and what it is."""
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS wide")
        connection.execute("CREATE TABLE wide AS SELECT g FROM generate_series(1, 300000) g")
        connection.execute("ANALYZE wide")
    statement = """
        SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
        SET max_parallel_workers_per_gather = 2;
        SELECT count(*) FROM wide a JOIN wide b ON a.g % 100 = b.g % 100 AND a.g < b.g
    """
    with reader_of(server, "mapped") as reader, running(server, statement) as pid:
        workers = until(
            lambda: [slot for slot in reader.sweep() if slot.session.backend_type == "parallel worker"]
        )
        assert {slot.leader for slot in workers} == {pid}
        leader = slot_of(reader, pid)
        assert leader is not None
        assert leader.leader == 0
        assert leader.session.backend_type == "client backend"


def test_long_statements_are_marked(server: Any, until: Callable[..., Any]) -> None:
    """A text that fills the server's buffer is cut at a whole character, and said to be cut."""
    statement = "SELECT pg_sleep(20) /* " + "é" * 600 + " */"
    with reader_of(server, "read") as reader, running(server, statement) as pid:
        slot = until(lambda: (found := slot_of(reader, pid)) and found.wait.event == "PgSleep" and found)
        assert slot.statement.truncated
        assert statement.startswith(slot.statement.text)
        assert len(slot.statement.text.encode()) in (1022, 1023)
        look = reader.look(pid)
        assert look is not None
        assert look == slot
    assert reader.look(2**22 + 1) is None


@pytest.mark.parametrize("route", ROUTES)
def test_new_backends_at_once(server: Any, route: str) -> None:
    """A backend is seen by the first sweep after it connected, and gone by the first after it left."""
    with reader_of(server, route) as reader:
        reader.sweep()
        for _ in range(5):
            connections = [server.connect() for _ in range(9)]
            pids = {connection.info.backend_pid for connection in connections}
            assert pids <= {slot.session.server_pid for slot in reader.sweep()}
            for connection in connections:
                connection.close()
            with server.connect() as one:
                deadline = time.monotonic() + 10
                left = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"
                while one.execute(left, (list(pids),)).fetchone() != (0,):
                    assert time.monotonic() < deadline
                assert not pids & {slot.session.server_pid for slot in reader.sweep()}
