"""Connections to the database: a worker's pool, and connections for one request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg2

if TYPE_CHECKING:
    from psycopg2 import extensions

__all__ = ["APPLICATION", "Database"]

APPLICATION = "registry"
"""What the registry calls itself towards the database."""
OPTIONS = "-c statement_timeout=20s -c lock_timeout=10s"
"""A request ends with 503 rather than hang for longer."""
KEPT = 4


class Database:
    """Gives out transactions. The pool belongs to a process: nothing may be taken before a fork."""

    def __init__(self, dsn: str, application: str = APPLICATION) -> None:
        self._dsn = dsn
        self._application = application
        self._idle: list[extensions.connection] = []

    @contextmanager
    def transaction(self, *, own_connection: bool = False) -> Iterator[extensions.cursor]:
        """Yield a cursor whose work is committed at the end, and undone where an exception passes.

        With `own_connection` it runs on a connection opened for it alone. Raises `psycopg2.Error`.
        Nothing within may yield to gevent's hub: locks would be held meanwhile.
        """
        connection = self._open() if own_connection or not self._idle else self._idle.pop()
        kept = False
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
            kept = not own_connection and len(self._idle) < KEPT
        except psycopg2.OperationalError:
            raise
        except BaseException:
            # Not the connection's fault: it was rolled back and serves on.
            kept = not own_connection and not connection.closed and len(self._idle) < KEPT
            raise
        finally:
            if kept:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    def _open(self) -> extensions.connection:
        return psycopg2.connect(
            self._dsn, application_name=self._application, connect_timeout=5, options=OPTIONS
        )
