"""Who holds the lock that a session waits for: by one query a second, while any waits longer than that.

`pg_blocking_pids` (PostgreSQL manual, "Session Information Functions") looks at the lock manager's shared
tables under its locks, so it is asked for the waiters alone, and never while there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import psycopg
from psycopg.rows import TupleRow

from quayscope.profile.statement import normalize

__all__ = ["LockHolders"]

_QUERY = """
SELECT w.pid, coalesce(h.state, h.backend_type), left(coalesce(h.query, ''), 4096)
FROM unnest(%s::int[]) AS w(pid)
CROSS JOIN LATERAL (SELECT (pg_blocking_pids(w.pid))[1] AS pid) AS b
JOIN pg_stat_activity h ON h.pid = b.pid
"""
_MOST = 64
"""Waiters asked about at once."""
_SHOWN = 200
"""Characters of the holder's statement."""


class LockHolders:
    """What is known of the holders; `learn` is called with the connection, `of` by the sweeping thread."""

    def __init__(self, waiters: Callable[[], Collection[int]]) -> None:
        self._waiters = waiters
        self._held_by: dict[int, str] = {}

    def learn(self, connection: psycopg.Connection[TupleRow]) -> None:
        """Ask who blocks those that wait now. Raises psycopg.Error."""
        waiters = sorted(self._waiters())[:_MOST]
        found: dict[int, str] = {}
        if waiters:
            for pid, state, text in connection.execute(_QUERY, (waiters,)):
                statement = normalize(text).text[:_SHOWN] if text else ""
                found[pid] = f"held by {state}: {statement}" if statement else f"held by {state}"
        self._held_by = found

    def of(self, server_pid: int) -> str:
        """Return who holds what this backend waits for, empty where that is not known."""
        return self._held_by.get(server_pid, "")
