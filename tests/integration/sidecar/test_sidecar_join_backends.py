"""Which statement is whose: parallel workers, cut texts, protocols, times between statements, crashes."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from postgres.joined import Joining, joining
from postgres.reading import ROUTES
from quayscope.profile import Profile
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.targets import CLIENT_BACKEND

_SPIN = "SELECT count(*) FROM generate_series(1, {}) g"


@pytest.fixture(scope="module", params=["13", pytest.param("18", marks=pytest.mark.full_size)])
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Any:
    """A server of the oldest major, which the operator deploys for Quay; at full size of the newest too."""
    return server_of(request.param)


def _texts(found: Joining, pid: int) -> set[str | None]:
    """What a process was seen to run."""
    return {one.ran.text for one in list(found.samples) if one.pid == pid and not one.ran.unproven}


@contextlib.contextmanager
def _looping(connection: psycopg.Connection[Any], step: Callable[[], object]) -> Iterator[None]:
    """Take a step again and again on a thread of its own, until left."""
    stop = threading.Event()
    faults: list[Exception] = []

    def run() -> None:
        try:
            while not stop.is_set():
                step()
        except psycopg.Error as error:
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        connection.close()
        assert not faults


def test_parallel_workers_work_for_their_leader(server: Any, until: Callable[..., Any], full: bool) -> None:
    """A worker's CPU is its leader's statement's, under the leader's pid, with its own frame."""
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS wide")
        connection.execute(
            "CREATE TABLE wide AS SELECT g, md5(g::text) AS t FROM generate_series(1, 300000) g"
        )
        connection.execute("ANALYZE wide")
    statement = "/*quayscope:run='wide'*/ SELECT max(md5(t)), count(*) FROM wide WHERE g % 7 <> 3"
    connection = server.connect()
    for setting in ("parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0"):
        connection.execute(f"SET {setting}".encode())
    connection.execute("SET max_parallel_workers_per_gather = 2")
    leader = connection.info.backend_pid
    with joining(server) as found, _looping(connection, lambda: connection.execute(statement.encode())):

        def workers() -> list[Any]:
            return [one for one in list(found.samples) if one.ran.role == "parallel worker"]

        until(lambda: len(workers()) > 40, 30.0)
        seen = workers()
    shown = [one for one in seen if not one.ran.unproven]
    # Of forty samples chance and a busy machine leave fewer proven than of thousands.
    assert len(shown) > (0.9 if full else 0.75) * len(seen)
    assert {one.ran.text for one in shown if one.ran.text is not None} == {statement}
    assert {one.ran.pid for one in shown if one.ran.text is not None} == {leader}
    stacks = {
        stack[:3]
        for profile in found.profiles
        if profile.labels["role"] == "parallel worker"
        for stack, attributes in profile.samples
        if attributes.run == "wide"
    }
    assert {(frame.function, frame.kind) for (_, _, frame) in stacks} == {("parallel worker", "root")}
    assert {frame.kind for (_, frame, _) in stacks} == {"sql"}


@pytest.mark.parametrize("route", ROUTES)
def test_long_texts_are_whole(server: Any, route: str, until: Callable[..., Any]) -> None:
    """A text that the server cuts is read from the backend; its comment stands in front in any case."""
    connection = server.connect()
    pid = connection.info.backend_pid
    columns = ", ".join(f"{n} AS column_{n}" for n in range(200))
    long = f"/*quayscope:run='long'*/ {_SPIN.format(400_000)}, (SELECT {columns}) x"
    short = f"/*quayscope:run='short'*/ {_SPIN.format(40_000)}"
    texts = iter([long, short] * 100_000)
    with (
        joining(server, route=route) as found,
        _looping(connection, lambda: connection.execute(next(texts).encode())),
    ):
        until(lambda: _texts(found, pid) >= {long, short}, 30.0)
    # A sample at the very end of one gets what the server keeps of it; nothing is made up.
    assert {text for text in _texts(found, pid) if text is not None and text not in (long, short)} <= {
        long[:1023]
    }
    proven = [one for one in found.samples if one.pid == pid and one.ran.text is not None]
    cut = sum(len(one.ran.text or "") == 1023 for one in proven)
    assert cut < 0.1 * len(proven) + 3


def test_protocols_and_transactions(server: Any, until: Callable[..., Any]) -> None:
    """Extended and prepared statements show their own text; what ends a transaction shows itself."""
    connection = psycopg.connect(server.dsn)
    pid = connection.info.backend_pid
    template = "SELECT count(*) FROM generate_series(1, $1::int) g"
    parameters = template.replace("$1::int", "%s::int")
    query = parameters.encode()

    def step() -> None:
        connection.execute(query, (20_000,), prepare=False)
        connection.execute(query, (20_000,), prepare=True)
        connection.execute("INSERT INTO kept SELECT g FROM generate_series(1, 2000) g")
        connection.commit()

    with server.connect() as maker:
        maker.execute("DROP TABLE IF EXISTS kept")
        maker.execute("CREATE TABLE kept (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, m int)")
        maker.execute("ALTER TABLE kept DROP CONSTRAINT kept_pkey")
    with joining(server) as found, _looping(connection, step):
        insert = "INSERT INTO kept SELECT g FROM generate_series(1, 2000) g"
        until(lambda: _texts(found, pid) >= {template, insert}, 30.0)
        until(lambda: len(found.samples) > 100, 30.0)
    assert _texts(found, pid) <= {template, insert, "BEGIN", "COMMIT", None}


def test_between_statements_nothing_is_shown(server: Any, until: Callable[..., Any]) -> None:
    """A client that sends the smallest statements: what its backend does between them is no statement's."""
    connection = server.connect()
    pid = connection.info.backend_pid
    with joining(server) as found, _looping(connection, lambda: connection.execute("")):
        until(lambda: len([one for one in list(found.samples) if one.pid == pid]) > 40, 30.0)
    ours = [one for one in found.samples if one.pid == pid]
    assert {one.ran.text for one in ours if one.ran.text} == set()
    assert any(not one.ran.unproven for one in ours)


def test_activity_is_not_tracked(server: Any, until: Callable[..., Any]) -> None:
    """With track_activities off nothing is proven, and nothing shown."""
    connection = server.connect()
    pid = connection.info.backend_pid
    connection.execute("SET track_activities = off")
    with (
        joining(server) as found,
        _looping(connection, lambda: connection.execute(_SPIN.format(50_000).encode())),
    ):
        until(lambda: len([one for one in list(found.samples) if one.pid == pid]) > 50, 30.0)
    # It shows what it did last before it stopped to show: that is over since.
    ours = [one for one in found.samples if one.pid == pid]
    assert {one.ran.text for one in ours} == {None}
    assert sum(one.ran.unproven for one in ours) > 0.9 * len(ours)
    assert {one.ran.role for one in ours} == {CLIENT_BACKEND}


def test_connections_that_are_new_each_time(server: Any, until: Callable[..., Any]) -> None:
    """Of backends that live for one statement, what is proven is theirs; how they begin is no statement's."""
    shown = "SELECT 1 AS first_and_last"

    def step() -> None:
        with server.connect() as connection:
            connection.execute(shown)
            connection.execute(_SPIN.format(20_000).encode())

    spare = server.connect()
    with joining(server) as found, _looping(spare, step):
        until(lambda: len(found.samples) > 150, 60.0)
    backends = [one for one in found.samples if one.ran.role in (CLIENT_BACKEND, None)]
    assert {one.ran.text for one in backends} <= {None, shown, _SPIN.format(20_000)}
    spinning = [one for one in backends if one.ran.text == _SPIN.format(20_000)]
    unproven = sum(one.ran.unproven for one in backends)
    print(f"{len(backends)} samples of backends, {len(spinning)} of the statement, {unproven} unproven")
    assert len(spinning) > 10
    assert unproven < 0.5 * len(backends)


def test_notes_are_bounded(server: Any, until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for a note, the sample counts as unproven, and that it was so."""
    monkeypatch.setattr("quayscope.sidecar.postgres.sampling._MAX_HELD", 4000)
    connection = server.connect()
    statement = f"{_SPIN.format(20_000)} /* {'x' * 600} */".encode()
    with joining(server) as found, _looping(connection, lambda: connection.execute(statement)):
        until(lambda: found.sampling.unnoted > 50, 30.0)
        until(lambda: found.samples, 10.0)
    unproven = sum(profile.losses.unproven for profile in found.profiles)
    assert unproven >= found.sampling.unnoted > 50


def _mapped() -> int:
    """How many segments of servers are mapped here."""
    return Path("/proc/self/maps").read_text().count("/dev/zero (deleted)")


def test_crashes_prove_nothing_wrong(
    make_server: Callable[..., Any], until: Callable[..., Any], full: bool
) -> None:
    """Through kills, recoveries and restarts no backend gets another's statement; all are seen again."""
    server = make_server("15")
    mapped = _mapped()
    profiles: list[Profile] = []
    database = Database(
        DatabaseOptions(str(server.pid), "", "db", {}, 499, 1),
        Capabilities(),
        profiles.extend,
        lambda _: None,
    )
    database.start()
    shown: set[str] = set()

    def is_shown(pid: int) -> bool:
        database.tick()
        while profiles:
            for stack, attributes in profiles.pop().samples:
                if len(stack) > 1 and stack[1].kind == "sql":
                    # Each statement's comment names its backend.
                    assert attributes.run == str(attributes.pid)
                    shown.add(attributes.run)
        return str(pid) in shown

    try:
        for number in range(200 if full else 3):
            if number % 20 == 2:
                server.stop()
                server.start()
            connection = server.connect()
            pid = connection.info.backend_pid
            statement = f"/*quayscope:run='{pid}'*/ {_SPIN.format(30_000)}".encode()

            def step(connection: Any = connection, statement: bytes = statement) -> None:
                with contextlib.suppress(psycopg.OperationalError):
                    connection.execute(statement)

            with _looping(connection, step):
                until(functools.partial(is_shown, pid), 30.0)
                until(lambda: _mapped() == mapped + 1)
                with server.connect() as victim:
                    os.kill(victim.info.backend_pid, signal.SIGKILL)
                    until(functools.partial(getattr, connection, "closed"), 20.0)
            until(server._answers, 30.0)
    finally:
        database.close()
    assert database.counts()["faults"] == 0
    assert _mapped() == mapped
    server.stop()
