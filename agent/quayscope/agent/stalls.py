"""Time blocked in psycopg2: stack, statement, request, nanoseconds; and our comment in each statement.

psycopg2 waits in C: the whole worker, all its greenlets, wait with it. The timing is the innermost: classes
of ours stand between the driver's C classes and whatever the application or OpenTelemetry put on top,
so that `super().execute()` of theirs reaches ours, and ours the driver.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any, Callable

from quayscope.agent.context import CURRENT, Request
from quayscope.agent.faults import add, fault
from quayscope.agent.frames import Key, Stacker
from quayscope.agent.slots import MAX_KEYS, Slots
from quayscope.profile.statement import encode_comment, normalize

__all__ = ["StallTimer", "patch_psycopg2"]

CONNECT = "[connect]"
LONGEST_STATEMENT = 8_000
"""Longer texts (bulk inserts) are named by their beginning."""
_MIXED = "_quayscope_mixed"


class StallTimer:
    """Keeps blocked time by request, statement and stack."""

    def __init__(self, stacker: Stacker, *, comment: bool) -> None:
        self._stacker = stacker
        self._comment = comment
        self.stalls: Slots[tuple[Request | None, str, Key], list[int]] = Slots()
        self.running = False

    def comment(self, parameters: bool) -> str:
        """Return what goes in front of the next statement; "" outside requests."""
        request = CURRENT.get() if self._comment and self.running else None
        if request is None:
            return ""
        return encode_comment(
            route=request.endpoint,
            trace=request.trace_id,
            run=request.run,
            phase=request.phase,
            parameters=parameters,
        )

    def note(self, statement: str, started_ns: int) -> None:
        """Add the time since `started_ns` (`perf_counter_ns`) to a statement of the caller's caller."""
        if not self.running:
            return
        try:
            spent = time.perf_counter_ns() - started_ns
            own = time.thread_time_ns()
            request = CURRENT.get()
            if statement != CONNECT:
                statement = normalize(statement[:LONGEST_STATEMENT]).text
                add("statements")
            else:
                add("connections")
            key = (request, statement, self._stacker.take(sys._getframe(2)))
            table = self.stalls.now()
            held = table.get(key)
            if held is not None:
                held[0] += spent
                held[1] += 1
            elif len(table) < MAX_KEYS:
                table[key] = [spent, 1]
            else:
                add("records_dropped")
            if request is not None:
                request.stalled_ns += spent
            add("cpu_ns", time.thread_time_ns() - own)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)


def patch_psycopg2(module: ModuleType, timer: StallTimer) -> None:
    """Time what the driver does from now on. `psycopg2._connect` is what every `connect` ends in."""
    extensions = sys.modules["psycopg2.extensions"]
    timed_cursor = _timed_cursor(extensions.cursor, timer)
    mix_cursor = _mixer(extensions.cursor, timed_cursor)
    timed_connection = _timed_connection(extensions.connection, mix_cursor, timer)
    mix_connection = _mixer(extensions.connection, timed_connection)
    plain = module._connect

    def _connect(dsn: Any, connection_factory: Any = None, **named: Any) -> Any:
        started = time.perf_counter_ns()
        try:
            return plain(dsn, connection_factory=mix_connection(connection_factory), **named)
        finally:
            timer.note(CONNECT, started)

    _connect.quayscope = True  # type: ignore[attr-defined]
    module._connect = _connect  # type: ignore[attr-defined]


def _mixer(base: type, timed: type) -> Callable[[Any], Any]:
    """Return a function that puts `timed` between a class derived from the driver's `base` and the driver."""

    def mix(factory: Any) -> Any:
        if factory is None or factory is base:
            return timed
        try:
            if not isinstance(factory, type) or not issubclass(factory, base) or issubclass(factory, timed):
                return factory
            # Kept on the class itself: OpenTelemetry makes one a connection, and both must go together.
            mixed = factory.__dict__.get(_MIXED)
            if mixed is None:
                mixed = type(factory.__name__, (factory, timed), {"__module__": factory.__module__})
                setattr(factory, _MIXED, mixed)
        except Exception as error:  # noqa: BLE001 - classes of others may have metaclasses that refuse
            fault(error)
            return factory
        return mixed

    return mix


def _timed_connection(base: type, mix_cursor: Callable[[Any], Any], timer: StallTimer) -> type:
    class TimedConnection(base):  # type: ignore[misc]
        """The driver's connection, whose cursors and transactions are timed."""

        def cursor(self, *arguments: Any, **named: Any) -> Any:
            # Positions: name, cursor_factory, scrollable, withhold.
            if len(arguments) > 1:
                return super().cursor(
                    arguments[0], mix_cursor(arguments[1] or self.cursor_factory), *arguments[2:], **named
                )
            named["cursor_factory"] = mix_cursor(named.get("cursor_factory") or self.cursor_factory)
            return super().cursor(*arguments, **named)

        def commit(self) -> Any:
            started = time.perf_counter_ns()
            try:
                return super().commit()
            finally:
                timer.note("commit", started)

        def rollback(self) -> Any:
            started = time.perf_counter_ns()
            try:
                return super().rollback()
            finally:
                timer.note("rollback", started)

    return TimedConnection


def _timed_cursor(base: type, timer: StallTimer) -> type:
    class TimedCursor(base):  # type: ignore[misc]
        """The driver's cursor: each statement is timed and carries our comment."""

        def execute(self, query: Any, vars: Any = None) -> Any:  # noqa: A002 - the driver's name
            text, sent = _prepare(timer, self, query, vars is not None)
            started = time.perf_counter_ns()
            try:
                return super().execute(sent, vars)
            finally:
                timer.note(text, started)

        def executemany(self, query: Any, vars_list: Any) -> Any:
            text, sent = _prepare(timer, self, query, True)
            started = time.perf_counter_ns()
            try:
                return super().executemany(sent, vars_list)
            finally:
                timer.note(text, started)

        def callproc(self, procname: Any, *arguments: Any) -> Any:
            started = time.perf_counter_ns()
            try:
                return super().callproc(procname, *arguments)
            finally:
                timer.note(f"select {procname}()", started)

    return TimedCursor


def _prepare(timer: StallTimer, cursor: Any, query: Any, parameters: bool) -> tuple[str, Any]:
    """Return the statement's text and what to send: the same query with our comment in front.

    An empty one stays empty, so that the driver refuses it as it does without us.
    """
    try:
        if isinstance(query, (str, bytes)) and not query.strip():
            return "[empty]", query
        if isinstance(query, str):
            return query, timer.comment(parameters) + query
        if isinstance(query, bytes):
            return query[:LONGEST_STATEMENT].decode("utf-8", "replace"), timer.comment(
                parameters
            ).encode() + query
        if hasattr(query, "as_string"):
            text = query.as_string(cursor)
            return text, timer.comment(parameters) + text
    except Exception as error:  # noqa: BLE001 - the border to somebody else's process
        fault(error)
    return "[unknown statement]", query
