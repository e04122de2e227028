"""The registry, noting when each endpoint's call to the database began and ended, and on which backend.

One line a call in `calls-PID` of the registry's directory: the backend's pid, both times in Unix nanoseconds,
and the endpoint.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import psycopg2
from flask import has_request_context, request
from psycopg2 import extensions

from quayscope.load.demo.registry import database

_FILES: dict[int, TextIO] = {}


def _note(backend: int, began_ns: int) -> None:
    ended_ns = time.time_ns()
    file = _FILES.get(os.getpid())
    if file is None:
        path = Path(os.environ["QUAYSCOPE_DEMO_DIR"]) / f"calls-{os.getpid()}"
        file = _FILES[os.getpid()] = path.open("w", buffering=1)
    rule = request.url_rule.rule if has_request_context() and request.url_rule is not None else ""
    file.write(f"{backend} {began_ns} {ended_ns} {request.method if rule else ''} {rule}\n")


@contextlib.contextmanager
def _noted(connection: extensions.connection) -> Iterator[None]:
    backend, began_ns = connection.info.backend_pid, time.time_ns()
    try:
        yield
    finally:
        _note(backend, began_ns)


class _Cursor(extensions.cursor):
    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - the driver's name
        with _noted(self.connection):
            super().execute(query, vars)


class _Connection(extensions.connection):
    def cursor(self, *arguments: Any, **named: Any) -> Any:
        return super().cursor(*arguments, **{"cursor_factory": _Cursor, **named})

    def commit(self) -> None:
        with _noted(self):
            super().commit()

    def rollback(self) -> None:
        with _noted(self):
            super().rollback()


def _open(self: Any) -> Any:
    return psycopg2.connect(
        self._dsn,
        connection_factory=_Connection,
        application_name=self._application,
        connect_timeout=5,
        options=database.OPTIONS,
    )


database.Database._open = _open  # type: ignore[method-assign] # the one place where it connects

from quayscope.load.demo.registry.app import app  # noqa: E402 - with the class above

__all__ = ["app"]
