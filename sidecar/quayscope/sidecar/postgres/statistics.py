"""The server's own counters, as metrics: what a report from its log would say, without turning logging on.

Views and their columns: see `views`. What a version, a role or a missing extension does not give is left out
and said once as a capability. The sidecar's own polls are among the commits of the database that it is
connected to, about eleven a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from quayscope.profile.statement import normalize
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.postgres.views import STATEMENTS, VIEWS, View

__all__ = ["ServerStatistics"]

Connection = psycopg.Connection[TupleRow]
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
_EXTENSION = """
SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_stat_statements'
"""
_REFUSALS = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.QueryCanceled,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedTable,
    # The extension is installed and its library not loaded.
    psycopg.errors.ObjectNotInPrerequisiteState,
)
_REPEAT_S = 60.0
"""What has not changed is sent again after so long."""
_MAX_KEPT = 5_000
_CAPABILITY = "pg_stat_statements"
_STATEMENT_TEXT = 1_000
"""Characters of a normalised statement that a metric's attribute carries."""


class ServerStatistics:
    """Reads the counters over a connection and hands them to `emit`; each view in its own period."""

    def __init__(self, emit: Callable[[list[Reading]], None], capabilities: Capabilities) -> None:
        self._emit = emit
        self._capabilities = capabilities
        self._due: dict[View, float] = {}
        self._schema: str | None = None
        self._sent: dict[tuple[object, ...], tuple[tuple[Any, ...], float]] = {}
        self.refused = 0

    def read(self, connection: Connection) -> None:
        """Read and emit what is due; raises psycopg.Error when the connection is lost."""
        version = connection.info.server_version
        readings = self._every_second(connection, version)
        now = time.monotonic()
        for view in (*VIEWS, STATEMENTS):
            if version < view.since or not view.held(version) or now < self._due.get(view, 0.0):
                continue
            self._due[view] = now + view.period_s
            try:
                readings += (
                    self._statements(connection) if view is STATEMENTS else self._rows(connection, view)
                )
            except _REFUSALS as error:
                self._refuse(view, error)
        self._emit(readings)

    def _refuse(self, view: View, error: psycopg.Error) -> None:
        self.refused += 1
        said = str(error).splitlines()[0]
        remedy = "GRANT pg_read_all_stats to the role of --postgres-dsn"
        name = _CAPABILITY if view is STATEMENTS else f"postgres_{view.prefix}"
        self._capabilities.note(Capability(name, False, said, remedy))

    @staticmethod
    def _every_second(connection: Connection, version: int) -> list[Reading]:
        readings = []
        sessions = ", sessions" if version >= _SESSIONS_SINCE else ""
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
        return readings

    def _statements(self, connection: Connection) -> list[Reading]:
        if self._schema is None:
            row = connection.execute(_EXTENSION).fetchone()
            if row is None:
                self._capabilities.note(
                    Capability(
                        _CAPABILITY,
                        False,
                        "the extension is not installed in the database of --postgres-dsn",
                        "CREATE EXTENSION pg_stat_statements, with it in shared_preload_libraries",
                    )
                )
                return []
            self._schema = str(row[0])
        version = connection.info.server_version
        query = STATEMENTS._replace(source=STATEMENTS.source.format(schema=self._schema)).query(version)
        rows = connection.execute(query).fetchall()
        self._capabilities.note(Capability(_CAPABILITY, True, f"read from schema {self._schema}"))
        return self._readings(STATEMENTS, version, _merged(STATEMENTS, version, rows))

    def _rows(self, connection: Connection, view: View) -> list[Reading]:
        version = connection.info.server_version
        names = [name for name, _ in view.attributes]
        rows = []
        for row in connection.execute(view.query(version)):
            attributes = {name: str(text or "") for name, text in zip(names, row, strict=False)}
            rows.append((attributes, row[len(names) :]))
        return self._readings(view, version, rows)

    def _readings(
        self, view: View, version: int, rows: Iterable[tuple[Mapping[str, str], Sequence[Any]]]
    ) -> list[Reading]:
        """Return the readings of the rows that changed, or were not sent for a while."""
        now = time.monotonic()
        held = view.held(version)
        readings = []
        for attributes, values in rows:
            key = (view.prefix, view.period_s, *attributes.values())
            before, sent_at = self._sent.get(key, ((), 0.0))
            if before == tuple(values) and now < sent_at + _REPEAT_S:
                continue
            if len(self._sent) >= _MAX_KEPT:
                self._sent.clear()
            self._sent[key] = (tuple(values), now)
            readings += [
                Reading(
                    f"postgresql.{view.prefix}.{value.name}",
                    value.kind,
                    float(number) * value.scale,
                    value.unit,
                    attributes,
                )
                for value, number in zip(held, values, strict=True)
                if number is not None
            ]
        return readings


def _merged(
    view: View, version: int, rows: Iterable[tuple[Any, ...]]
) -> list[tuple[Mapping[str, str], Sequence[float]]]:
    """Add up what is one statement to us: Postgres keeps the lengths of an IN list apart."""
    width, count = len(view.attributes), len(view.held(version))
    sums: dict[tuple[str, str, str], list[float]] = {}
    first: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        query_id, database, user, text = row[:width]
        statement = normalize(text or "")
        key = (statement.fingerprint, database, user)
        if key not in sums:
            sums[key] = [0.0] * count
            first[key] = {
                "fingerprint": statement.fingerprint,
                "query_id": query_id or "",
                "database": database,
                "user": user,
                "statement": statement.text[:_STATEMENT_TEXT],
            }
        for at, value in enumerate(row[width:]):
            sums[key][at] += float(value or 0)
    return [(first[key], numbers) for key, numbers in sums.items()]
