"""Single stages against a real Postgres: memory, locks, limits, finding servers."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.native.ring import Rings, Taken
from quayscope.sidecar.native.sources import RESERVED_DESCRIPTORS, Demand, Plan, TaskSource
from quayscope.sidecar.postgres.activity import APPLICATION_NAME
from quayscope.sidecar.postgres.memory import MAX_STATEMENT, BackendMemory
from quayscope.sidecar.targets import BackendPids, backend_type, find_postmasters, postmaster_at


def _descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def _run_long(server: Any, statement: str) -> tuple[threading.Thread, int, psycopg.Connection[Any]]:
    connection = server.connect()

    def run() -> None:
        # Cancelled when the test has seen what it wanted.
        with contextlib.suppress(psycopg.Error):
            connection.execute(statement.encode())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, connection.info.backend_pid, connection


@pytest.mark.parametrize("length", [30, 4000, 4096, 9000, 200_000])
def test_statement_from_memory(postgres: Any, length: int, until: Callable[..., Any]) -> None:
    """The text is the one that was sent, whole, across pages, up to the bound; null once it has ended."""
    server = postmaster_at(postgres.pid)
    assert server is not None
    memory = BackendMemory(server)
    text = "SELECT pg_sleep(60) /* " + "é" * length + " */"
    thread, pid, connection = _run_long(postgres, text)
    try:
        seen = until(lambda: memory.statement(pid), 5.0)
        assert seen.rstrip("\N{REPLACEMENT CHARACTER}") == text.encode()[:MAX_STATEMENT].decode(
            errors="ignore"
        )
    finally:
        connection.cancel()
        thread.join(5)
    until(lambda: memory.statement(pid) is None, 5.0)
    connection.close()
    until(lambda: procfs.stat(pid) is None, 5.0)
    assert memory.statement(pid) is None
    assert memory.torn == 0


def test_statement_that_changes_all_the_time(postgres: Any, load: Any) -> None:
    """Whatever moment is caught, what comes back is a statement that was sent, or none."""
    server = postmaster_at(postgres.pid)
    assert server is not None
    memory = BackendMemory(server)
    # Active for about as long as it is not: a reader that shares the backend's core meets it in both.
    sent = "SELECT 1234567890, count(*) FROM generate_series(1, 1000)"
    with load(postgres, sent) as running:
        seen: Counter[str | None] = Counter()
        began = time.monotonic()
        # At least half a second of moments; on a busy machine, until one falls into the short statement.
        while time.monotonic() < began + (10.0 if not seen[sent] else 0.5):
            seen[memory.statement(running.pid)] += 1
            time.sleep(0.00005)  # lets the load go on
    assert set(seen) <= {sent, None}
    assert seen[sent] > 0


def test_processes_are_named(postgres: Any, load: Any, until: Callable[..., Any]) -> None:
    """The postmaster is found without being told, and its processes by what they are."""
    server = next(found for found in find_postmasters() if found.pid == postgres.pid)
    assert server.data_directory == str(postgres.data)
    assert server.alive()
    with load(postgres, "SELECT 1") as running:
        kinds = {pid: backend_type(pid) for pid in server.backends()}
        assert kinds[running.pid] == "client backend"
        assert {"checkpointer", "background writer", "walwriter"} <= set(kinds.values())
        pids = BackendPids(server)
        assert pids.resolve(running.pid) == running.pid
        assert pids.resolve(os.getpid()) is None
        assert postmaster_at(running.pid) is None or server.pid != running.pid


def test_samples_of_the_tree_alone(postgres: Any, load: Any, until: Callable[..., Any]) -> None:
    """Backends that come later are sampled, other processes never; what ends is let go."""
    before = len(_descriptors())
    server = postmaster_at(postgres.pid)
    assert server is not None
    rings: Rings[str] = Rings(1 << 20)
    source = TaskSource(rings, Demand("it", server.pid, server.backends), Plan(99, os.geteuid() == 0))
    seen: Counter[int] = Counter()
    end = time.monotonic() + 20.0
    with load(postgres, "SELECT sum(g) FROM generate_series(1, 100000) g") as running:
        while seen[running.pid] <= 20 and time.monotonic() < end:
            sum(range(1000))
            seen.update(record.sample.pid for record in rings.drain() if isinstance(record, Taken))
            rings.release()
            time.sleep(0.01)
    assert seen[running.pid] > 20
    assert os.getpid() not in seen
    source.close()
    rings.close()
    assert len(_descriptors()) == before


def test_out_of_descriptors(postgres16: Any, load: Any) -> None:
    """With no descriptor left for an older backend the sidecar says so and samples the others."""
    statement = "SELECT sum(g) FROM generate_series(1, 100000) g"
    capabilities = Capabilities()
    out: list[Profile] = []
    options = DatabaseOptions(str(postgres16.pid), "", "db", {}, 99, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with load(postgres16, statement):
        database = Database(options, capabilities, out.extend, lambda readings: None)
        cpus = os.cpu_count() or 1
        try:
            # Room for the postmaster and one process more beside what is kept free.
            resource.setrlimit(resource.RLIMIT_NOFILE, (RESERVED_DESCRIPTORS + 2 * cpus, hard))
            database.start()
            database.tick()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        held = {capability.name: capability for capability in capabilities.all()}
        assert held["perf_user"].permitted
        assert not held["perf_all_backends"].permitted
        assert "Too many open files" in held["perf_all_backends"].detail
        with load(postgres16, statement) as newer:
            time.sleep(1.5)
            database.tick()
        database.close()
    assert any(key[1].pid == newer.pid for profile in out for key in profile.samples)


@pytest.fixture
def table(postgres: Any) -> str:
    with postgres.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS hot")
        connection.execute("CREATE TABLE hot (id int PRIMARY KEY, n int)")
        connection.execute("INSERT INTO hot VALUES (1, 0)")
    return "hot"


def test_lock_waits(postgres: Any, table: str) -> None:
    """Waiting for a row is charged to the waiting statement; holding it idle stands apart."""
    out: list[Profile] = []
    options = DatabaseOptions(str(postgres.pid), postgres.dsn, "db", {}, 99, 10)
    database = Database(options, Capabilities(), out.extend, lambda readings: None)
    database.start()
    holder = psycopg.connect(postgres.dsn)
    holder.execute(f"UPDATE {table} SET n = n + 1 WHERE id = 1")
    thread, pid, connection = _run_long(postgres, f"UPDATE {table} SET n = 0 WHERE id = 1")
    began = time.monotonic()
    time.sleep(2.0)
    held_s = time.monotonic() - began
    holder.rollback()
    holder.close()
    thread.join(5)
    connection.close()
    database.close()
    waits: Counter[tuple[str, ...]] = Counter()
    for profile in out:
        if profile.type.name == "block":
            for (stack, attributes), (_, delay) in profile.samples.items():
                assert APPLICATION_NAME not in stack[-2].function
                if attributes.pid in (pid, holder.info.backend_pid if not holder.closed else attributes.pid):
                    # Who holds the lock stands below the wait, once that is known.
                    names = tuple(frame.function for frame in stack[1:])
                    waits[names[:-1] if names[-1].startswith("held by ") else names] += delay
    locked = waits[f"update {table} set n = ? where id = ?", "Lock:transactionid"] / 1e9
    idle = (
        waits["idle in transaction", f"update {table} set n = n + ? where id = ?", "Client:ClientRead"] / 1e9
    )
    assert abs(locked - held_s) < 0.3
    assert abs(idle - held_s) < 0.5
