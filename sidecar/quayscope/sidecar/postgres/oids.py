"""Names of databases and users: shared memory knows only their oids.

They are learned by one query when a connection is configured and an oid turns up that has no name yet;
without a connection an oid stays its number as text.
"""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

__all__ = ["OidNames"]

_QUERY = """
SELECT 'database', oid::bigint, datname::text FROM pg_database
UNION ALL SELECT 'user', oid::bigint, rolname::text FROM pg_roles
"""
_MAX_NAMES = 65_536
_MAX_ASKED = 4096


class OidNames:
    """What is known so far; written by the thread of the connection, read by another's."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, int], str] = {}
        self._wanted: set[tuple[str, int]] = set()
        self._asked: set[tuple[str, int]] = set()
        self.version = 0
        """Moves when names were learned."""

    def database(self, oid: int) -> str:
        """Return the database's name, its oid where that is unknown, empty for none."""
        return self._name("database", oid)

    def user(self, oid: int) -> str:
        """Return the user's name, its oid where that is unknown, empty for none."""
        return self._name("user", oid)

    def _name(self, kind: str, oid: int) -> str:
        if not oid:
            return ""
        name = self._names.get((kind, oid))
        if name is None:
            self._wanted.add((kind, oid))
            return str(oid)
        return name

    def learn(self, connection: psycopg.Connection[TupleRow]) -> None:
        """Ask for the names, if some are lacking that were not asked for in vain; raises psycopg.Error."""
        lacking = self._wanted - self._asked
        if not lacking:
            return
        rows = connection.execute(_QUERY).fetchmany(_MAX_NAMES)
        self._names = {(kind, oid): name for kind, oid, name in rows}
        # An oid without a name (dropped meanwhile, or another server's) is not asked for again and again.
        self._asked = (self._asked | lacking) if len(self._asked) < _MAX_ASKED else lacking
        self._wanted -= lacking
        self.version += 1
