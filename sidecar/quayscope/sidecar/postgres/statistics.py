"""The server's own cumulative counters, as metrics.

Views: PostgreSQL manual, "The Cumulative Statistics System". `pg_stat_io` exists since 16, `sessions` since
14; what a version lacks is left out. The sidecar's own polls are among the commits of the database that it
is connected to, about eleven a second.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow

from quayscope.sidecar.measurements import Reading

__all__ = ["ServerStatistics"]

_IO_SINCE = 160_000
_SESSIONS_SINCE = 140_000
_DATABASES = """
SELECT datname, xact_commit, xact_rollback, blks_read, blks_hit{sessions}
FROM pg_stat_database WHERE datname IS NOT NULL
"""
_DATABASE_COUNTERS = ("commits", "rollbacks", "blocks_read", "blocks_hit", "sessions")
_IO = """
SELECT sum(reads)::bigint, sum(writes)::bigint, sum(extends)::bigint, sum(fsyncs)::bigint
FROM pg_stat_io
"""
_IO_COUNTERS = ("io_reads", "io_writes", "io_extends", "io_fsyncs")


class ServerStatistics:
    """Reads the counters over a connection and hands them to `emit`."""

    def __init__(self, emit: Callable[[list[Reading]], None]) -> None:
        self._emit = emit

    def read(self, connection: psycopg.Connection[TupleRow]) -> None:
        """Read and emit all counters once; raises psycopg.Error."""
        version = connection.info.server_version
        sessions = ", sessions" if version >= _SESSIONS_SINCE else ""
        readings = []
        for name, *values in connection.execute(_DATABASES.format(sessions=sessions)):
            readings += [
                Reading(f"postgresql.{counter}", "cumulative", value, "1", {"database": name})
                for counter, value in zip(_DATABASE_COUNTERS, values, strict=False)
            ]
        if version >= _IO_SINCE:
            row = connection.execute(_IO).fetchone() or ()
            readings += [
                Reading(f"postgresql.{counter}", "cumulative", value or 0, "1", {})
                for counter, value in zip(_IO_COUNTERS, row, strict=False)
            ]
        self._emit(readings)
