"""What Postgres itself says its backends do: `pg_stat_activity`, polled ten times a second.

One connection serves this and `statistics`; it only reads, is bounded by a statement timeout, comes back
after the server does, and leaves itself out of what it sees.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg.rows import TupleRow

from quayscope.sidecar.capabilities import Capabilities, Capability

__all__ = ["APPLICATION_NAME", "Activity", "Backend", "Listener", "Poll"]

log = logging.getLogger(__name__)

APPLICATION_NAME = "quayscope sidecar"
PERIOD_S = 0.1
STATISTICS_PERIOD_S = 1.0
_STATEMENT_TIMEOUT_MS = 2000
_CONNECT_TIMEOUT_S = 5
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 10.0
_FRESH_S = 1.0
"""A poll older than this says nothing about now."""
_CAPABILITY = "pg_stat_activity"

_QUERY = """
SELECT pid, coalesce(backend_type, ''), coalesce(state, ''), coalesce(wait_event_type, ''),
       coalesce(wait_event, ''), coalesce(query, ''),
       coalesce(extract(epoch FROM clock_timestamp() - backend_start), 0)::float8,
       coalesce(application_name, '')
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND application_name <> %s
"""
# Superusers pass pg_has_role for every role.
_MAY_SEE_ALL = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"


class Backend(NamedTuple):
    """One row of the view.

    `age_s` is since the process's start; `local` whether `pid` is a process that we see here, else it is the
    pid under which only the server knows it.
    """

    pid: int
    kind: str
    state: str
    wait_type: str
    wait: str
    query: str
    age_s: float
    local: bool
    application: str = ""

    @property
    def active(self) -> bool:
        """Whether it executes its statement now."""
        return self.state in ("active", "fastpath function call")


class Poll(NamedTuple):
    """What one look showed. `time_ns` is Unix time, `elapsed_ns` measured since the look before (0: none).

    After a gap (a lost connection) there is no look before: nobody saw that time.
    """

    time_ns: int
    elapsed_ns: int
    backends: Sequence[Backend]


class Listener(Protocol):
    """Is told of each poll."""

    def seen(self, poll: Poll) -> None:
        """Take in a poll."""


class Activity:
    """Polls on a thread of its own until closed; a statement source of second choice.

    `statistics` is called each second with the connection, within the same error handling; `resolve` turns a
    pid of the server into one of ours, None where it is no process of the watched server.
    """

    def __init__(
        self,
        dsn: str,
        capabilities: Capabilities,
        listeners: Sequence[Listener],
        statistics: Callable[[psycopg.Connection[TupleRow]], None] | None = None,
        resolve: Callable[[int], int | None] | None = None,
    ) -> None:
        self._dsn = dsn
        self._capabilities = capabilities
        self._listeners = list(listeners)
        self._statistics = statistics
        self._resolve = resolve
        self._statements: dict[int, str] = {}
        self._seen_at = 0.0
        self._stop = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="activity", daemon=True)
        self.polls = 0
        self.faults = 0

    def start(self) -> None:
        """Begin polling."""
        self._thread.start()

    def wait_tried(self, timeout_s: float) -> None:
        """Wait until the first connection succeeded or failed."""
        self._first.wait(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop polling."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def statement(self, pid: int) -> str | None:
        """Return what `pid` ran at the last poll, None when it ran nothing or the last poll is too old."""
        if time.monotonic() - self._seen_at > _FRESH_S:
            return None
        return self._statements.get(pid)

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF_S
        while not self._stop.is_set():
            polls = self.polls
            # The one border of this thread: whatever the server or a listener does, it connects again.
            try:
                self._poll_until_closed()
            except psycopg.Error as error:
                self._refuse(error)
            except Exception:
                self.faults += 1
                log.exception("activity fault", extra={"faults": self.faults})
            finally:
                self._first.set()
                self._statements = {}
            backoff = _FIRST_BACKOFF_S if self.polls > polls else min(backoff * 2, _LONGEST_BACKOFF_S)
            self._stop.wait(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret

    def _refuse(self, error: psycopg.Error) -> None:
        # A server's message can quote the statement below; its first line names the cause.
        said = str(error).strip().splitlines() or [type(error).__name__]
        self._capabilities.note(
            Capability(
                _CAPABILITY,
                False,
                said[0],
                "--postgres-dsn of a role with pg_read_all_stats, to a server that runs",
            )
        )

    def _poll_until_closed(self) -> None:
        with psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name=APPLICATION_NAME,
            options=f"-c statement_timeout={_STATEMENT_TIMEOUT_MS} -c default_transaction_read_only=on",
        ) as connection:
            self._note_permission(connection)
            before: int | None = None
            statistics_at = time.monotonic()
            due = time.monotonic()
            while not self._stop.is_set():
                rows = connection.execute(_QUERY, (APPLICATION_NAME,), prepare=True).fetchall()
                now = time.monotonic_ns()
                self._take(rows, 0 if before is None else now - before)
                before = now
                if self._statistics is not None and time.monotonic() >= statistics_at:
                    statistics_at = time.monotonic() + STATISTICS_PERIOD_S
                    self._statistics(connection)
                due = max(due + PERIOD_S, time.monotonic())
                self._stop.wait(due - time.monotonic())

    def _note_permission(self, connection: psycopg.Connection[TupleRow]) -> None:
        row = connection.execute(_MAY_SEE_ALL).fetchone()
        version = connection.info.server_version // 10_000
        self._first.set()
        if row is not None and row[0]:
            self._capabilities.note(Capability(_CAPABILITY, True, f"connected to PostgreSQL {version}"))
        else:
            self._capabilities.note(
                Capability(
                    _CAPABILITY,
                    False,
                    "connected, but other users' statements are hidden from this role",
                    "GRANT pg_read_all_stats to the role of --postgres-dsn",
                )
            )

    def _take(self, rows: Sequence[tuple[Any, ...]], elapsed_ns: int) -> None:
        backends = [self._backend(row) for row in rows]
        self._statements = {
            backend.pid: backend.query for backend in backends if backend.active and backend.query
        }
        self._seen_at = time.monotonic()
        self.polls += 1
        poll = Poll(time.time_ns(), elapsed_ns, backends)
        for listener in self._listeners:
            listener.seen(poll)

    def _backend(self, row: tuple[Any, ...]) -> Backend:
        pid = self._resolve(row[0]) if self._resolve is not None else None
        own_pid, kind, state, wait_type, wait, query, age_s, application = row
        ours = own_pid if pid is None else pid
        return Backend(ours, kind, state, wait_type, wait, query, age_s, pid is not None, application)
