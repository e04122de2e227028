"""Two backends of a Postgres without frame pointers, each kept busy by mixed statements."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from quayscope.load.demo.postgres import DemoPostgres
from sampler_targets import own_cgroup

__all__ = ["Load", "Server", "busy_postgres"]

_TABLE = """
CREATE TABLE bench AS SELECT g AS id, md5(g::text) AS name, (g * 7919) % 1000 AS kind,
  jsonb_build_object('a', g, 'b', md5((g * 3)::text)) AS body FROM generate_series(1, 20000) g;
CREATE INDEX ON bench (id);
ANALYZE bench;
"""
STATEMENTS = (
    "SELECT kind, count(*), sum(length(name)) FROM bench WHERE id > 12000 GROUP BY kind ORDER BY 2",
    "SELECT count(*) FROM bench WHERE body->>'b' LIKE '%ab%' AND id < 4000",
    "SELECT a.name FROM bench a JOIN bench b ON b.id = a.kind + 1 WHERE a.id < 3000 ORDER BY a.name LIMIT 10",
    "SELECT string_agg(upper(name), ',') FROM bench WHERE id BETWEEN 100 AND 2000",
    "SELECT count(*) FROM generate_series(1, 8000) g WHERE md5(g::text) < '8'",
)


@dataclass
class Server:
    """A running Postgres: its postmaster, and how to connect."""

    pid: int
    dsn: str

    def connect(self, **options: Any) -> psycopg.Connection:
        """Return a connection that commits each statement."""
        return psycopg.connect(self.dsn, autocommit=True, **options)


class Load:
    """Statements on connections of their own until closed; `runs` counts them by backend."""

    def __init__(self, dsn: str, connections: int = 2) -> None:
        self.runs: dict[int, int] = {}
        self._stop = threading.Event()
        self._connections = [psycopg.connect(dsn, autocommit=True) for _ in range(connections)]
        self.pids = [connection.info.backend_pid for connection in self._connections]
        self._threads = [
            threading.Thread(target=self._run, args=(connection,), daemon=True)
            for connection in self._connections
        ]
        for pid in self.pids:
            self.runs[pid] = 0
        for thread in self._threads:
            thread.start()

    def _run(self, connection: psycopg.Connection) -> None:
        pid = connection.info.backend_pid
        while not self._stop.is_set():
            for statement in STATEMENTS:
                connection.execute(statement.encode()).fetchall()
            self.runs[pid] += 1

    def close(self) -> None:
        """Stop, and give the connections back."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        for connection in self._connections:
            connection.close()


@contextlib.contextmanager
def busy_postgres(folder: Path) -> Iterator[tuple[Server, Load]]:
    """Run the server and its load."""
    with DemoPostgres(folder / "postgres") as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for statement in _TABLE.split(";\n"):
                if statement.strip():
                    connection.execute(statement.encode())
        load = Load(server.dsn)
        try:
            # As in a pod, where the container is a cgroup; only root may make one here.
            with own_cgroup() if os.geteuid() == 0 else contextlib.nullcontext() as cgroup:
                if cgroup is not None:
                    cgroup.adopt(server.pid)
                yield Server(server.pid, server.dsn), load
                load.close()
                server.stop()
        finally:
            load.close()
