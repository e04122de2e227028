"""The DuckDB file: opening it, loading the dictionaries, a cursor per reading thread, opening it again."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

import duckdb

from quayscope.collector.errors import CannotOpenStore, StoreUnavailable
from quayscope.collector.store.dictionaries import Dictionaries
from quayscope.collector.store.schema import VERSION, create_statements, upgrade_statements
from quayscope.profile import Frame

__all__ = ["Database"]

log = logging.getLogger(__name__)

FILE = "quayscope.duckdb"
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    # Two threads: queries share the machine with the profiled programs.
    "threads": 2,
    "memory_limit": "1GB",
    # Statements here never name files or load extensions; a flaw elsewhere must not be able to.
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


class Database:
    """One store file. A second process cannot open it: DuckDB locks it."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CannotOpenStore(
                f"cannot make the data directory {directory}: {error.strerror}",
                next_step="choose another with --data",
            ) from error
        self.path = directory / FILE
        self._local = threading.local()
        self._lock = threading.Lock()
        self._generation = 0
        self._connection: duckdb.DuckDBPyConnection | None = self._connect()
        self._prepare()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        try:
            return duckdb.connect(str(self.path), config=_CONFIG)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            next_step = "choose another with --data"
            if "lock" in reason.lower():
                reason, next_step = "another process has it open", "stop it, or " + next_step
            raise CannotOpenStore(f"cannot open {self.path}: {reason}", next_step=next_step) from error

    def _prepare(self) -> None:
        connection = self.writing()
        try:
            tables = {
                row[0] for row in connection.execute("FROM duckdb_tables() SELECT table_name").fetchall()
            }
            if not tables:
                self._lay_out(create_statements())
                return
            row = connection.execute("SELECT version FROM meta").fetchone() if "meta" in tables else None
            if row is not None and 1 <= row[0] < VERSION:
                self._lay_out(upgrade_statements(row[0]))
                log.info("store upgraded", extra={"from": row[0], "to": VERSION})
                return
        except duckdb.Error as error:
            raise CannotOpenStore(f"cannot prepare {self.path}: {str(error).splitlines()[0]}") from error
        if row is None or row[0] != VERSION:
            found = "none" if row is None else row[0]
            raise CannotOpenStore(
                f"{self.path} has version {found} of the tables, this collector reads {VERSION}",
                next_step="use the collector that wrote it, or choose another directory with --data",
            )

    def _lay_out(self, statements: list[str]) -> None:
        connection = self.writing()
        connection.execute("BEGIN")
        for statement in statements:
            connection.execute(statement)
        connection.execute("COMMIT")

    def writing(self) -> duckdb.DuckDBPyConnection:
        """Return the writer's connection; only the writer thread may use it. Raises `StoreUnavailable`."""
        if self._connection is None:
            raise StoreUnavailable("the store is closed")
        return self._connection

    def reading(self) -> duckdb.DuckDBPyConnection:
        """Return this thread's own cursor, which does not block commits; raises `StoreUnavailable`."""
        with self._lock:
            cursor: duckdb.DuckDBPyConnection | None = getattr(self._local, "cursor", None)
            if cursor is None or self._local.generation != self._generation:
                cursor = self.writing().cursor()
                self._local.cursor, self._local.generation = cursor, self._generation
            return cursor

    def reopen(self) -> None:
        """Close and open the file again, after an error that invalidated it; raises `CannotOpenStore`.

        Readers get new cursors; queries that run right now end with an error.
        """
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(duckdb.Error):
                    self._connection.close()
            self._connection = None
            self._connection = self._connect()
            self._generation += 1
        log.warning("store opened again", extra={"path": str(self.path)})

    def close(self) -> None:
        """Write what the log holds into the file and close it."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is None:
                return
            try:
                connection.execute("CHECKPOINT")
            except duckdb.Error as error:
                # Nothing is lost: the log file is replayed at the next start.
                log.warning("checkpoint failed", extra={"reason": str(error).splitlines()[0]})
            connection.close()

    def size(self) -> int:
        """Return the bytes on disk, log included."""
        total = 0
        for path in (self.path, self.path.with_name(FILE + ".wal")):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def load(self) -> tuple[Dictionaries, int]:
        """Return the dictionaries as they are on disk, and the first free message id."""
        dictionaries = Dictionaries()
        connection = self.writing()
        query = connection.execute
        dictionaries.load_series(query("SELECT type, labels FROM series ORDER BY id").fetchall())
        dictionaries.load_strings(
            [text for (text,) in query("SELECT text FROM strings ORDER BY id").fetchall()]
        )
        frames = [
            Frame(*row)
            for row in query("SELECT function, file, line, kind FROM frames ORDER BY id").fetchall()
        ]
        nodes = query("SELECT parent, frame FROM nodes ORDER BY id").fetchnumpy()
        dictionaries.tries.load(frames, nodes["parent"], nodes["frame"])
        dictionaries.load_metric_series(
            query("SELECT name, unit, kind, attributes, bounds FROM metric_series ORDER BY id").fetchall()
        )
        dictionaries.load_links(self._next("links"))
        for row in query(
            "SELECT key FROM (SELECT key, received_ns FROM profiles "
            "UNION ALL SELECT key, received_ns FROM messages "
            "UNION ALL SELECT key, received_ns FROM metric_messages) WHERE octet_length(key) > 0 "
            "ORDER BY received_ns DESC LIMIT 1000000"
        ).fetchall()[::-1]:
            dictionaries.remember(row[0])
        return dictionaries, self._next("messages")

    def _next(self, table: str) -> int:
        row = self.writing().execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()  # noqa: S608 - ours
        assert row is not None
        return int(row[0])
