"""psycopg2 with each call timed, and our comment in front of each statement.

The timing is the innermost: classes of ours stand between the driver's C classes and whatever the
application or OpenTelemetry put on top, so that `super().execute()` of theirs reaches ours, and ours the
driver. Each method of ours does nothing but call the driver between two guarded steps.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Callable

from quayscope.agent.faults import add, fault, guarded
from quayscope.agent.stalls import LONGEST_STATEMENT, Call, StallTimer

__all__ = ["patch_psycopg2"]

CONNECT = "[connect]"
UNKNOWN = "[unknown statement]"
_MIXED = "_quayscope_mixed"
_STATEMENT = "_quayscope_statement"
Mix = Callable[[Any], Any]


def patch_psycopg2(module: ModuleType, timer: StallTimer) -> None:
    """Time what the driver does from now on. `psycopg2._connect` is what every `connect` ends in."""
    extensions = sys.modules["psycopg2.extensions"]
    mix_cursor = _mixer(extensions.cursor, _timed_cursor(extensions.cursor, timer))
    mix_named = _mixer(
        extensions.cursor, _timed_named(_timed_cursor(extensions.cursor, timer), timer), _MIXED + "_named"
    )
    mix_connection = _mixer(
        extensions.connection, _timed_connection(extensions.connection, mix_cursor, mix_named, timer)
    )
    plain: Any = module._connect

    def begin() -> Call:
        add("connections")
        return timer.begin(timer.named(CONNECT))

    def _connect(dsn: Any, connection_factory: Any = None, **named: Any) -> Any:
        factory = guarded(mix_connection, connection_factory) or connection_factory
        call = guarded(begin) if timer.running else None
        try:
            return plain(dsn, connection_factory=factory, **named)
        finally:
            if call is not None:
                guarded(timer.end, call, 3)

    module._connect = _connect  # type: ignore[attr-defined]


def _mixer(base: type, timed: type, mark: str = _MIXED) -> Mix:
    """Return a function that puts `timed` between a class derived from the driver's `base` and the driver."""

    def mix(factory: Any) -> Any:
        if factory is None or factory is base:
            return timed
        if not isinstance(factory, type) or not issubclass(factory, base) or issubclass(factory, timed):
            return factory
        # Kept on the class itself: OpenTelemetry makes one a connection, and both must go together.
        mixed = factory.__dict__.get(mark)
        if mixed is None:
            mixed = type(factory.__name__, (factory, timed), {"__module__": factory.__module__})
            setattr(factory, mark, mixed)
        return mixed

    return mix


def _timed_connection(base: Any, mix_cursor: Mix, mix_named: Mix, timer: StallTimer) -> type:
    plain, timed = base.cursor, mix_cursor(None)

    class TimedConnection(base):  # type: ignore[misc]
        """The driver's connection, whose cursors and transactions are timed."""

        def cursor(self, name: Any = None, cursor_factory: Any = None, *rest: Any, **named: Any) -> Any:
            factory = cursor_factory or self.cursor_factory
            if factory is None and name is None:
                return plain(self, None, timed, *rest, **named)
            mixed = guarded(mix_cursor if name is None else mix_named, factory)
            return plain(self, name, mixed or factory, *rest, **named)

        commit = _timed(base, "commit", timer, lambda *_: "commit")
        rollback = _timed(base, "rollback", timer, lambda *_: "rollback")

    return TimedConnection


def _timed_cursor(base: type, timer: StallTimer) -> type:
    class TimedCursor(base):  # type: ignore[misc]
        """The driver's cursor: each statement is timed and carries our comment."""

        execute = _execute(base, timer)
        executemany = _commented(base, "executemany", "query", timer)
        copy_expert = _commented(base, "copy_expert", "sql", timer)
        callproc = _timed(base, "callproc", timer, lambda *given: f"select {given[1]}()")
        copy_from = _timed(base, "copy_from", timer, lambda *given: f"copy {given[2]} from stdin")
        copy_to = _timed(base, "copy_to", timer, lambda *given: f"copy {given[2]} to stdout")

    return TimedCursor


def _timed_named(base: type, timer: StallTimer) -> type:
    class TimedNamedCursor(base):  # type: ignore[misc]
        """A server-side cursor: each fetch goes to the server, and is its statement's time."""

        fetchone = _timed(base, "fetchone", timer, _declared)
        fetchmany = _timed(base, "fetchmany", timer, _declared)
        fetchall = _timed(base, "fetchall", timer, _declared)
        __next__ = _timed(base, "__next__", timer, _declared)

    return TimedNamedCursor


def _declared(cursor: Any, *_: Any) -> str:
    return str(cursor.__dict__.get(_STATEMENT, UNKNOWN))


def _timed(base: Any, name: str, timer: StallTimer, statement: Callable[..., str]) -> Callable[..., Any]:
    """Return the method `name` of the driver's class, timed as what `statement` says of its arguments."""
    plain = getattr(base, name)

    def begin(arguments: tuple[Any, ...]) -> Call:
        timer.statements += 1
        return timer.begin(timer.named(statement(*arguments)))

    def method(*arguments: Any, **named: Any) -> Any:
        call = guarded(begin, arguments) if timer.running else None
        try:
            return plain(*arguments, **named)
        finally:
            if call is not None:
                guarded(timer.end, call, 3)

    method.__name__ = name
    return method


def _execute(base: Any, timer: StallTimer) -> Callable[..., Any]:
    """Return `execute`, timed and commented: the one that is called a hundred times a request."""
    plain = base.execute

    # Guarded in place: after a wait each function more that is called costs a microsecond.
    def execute(self: Any, query: Any, vars: Any = None) -> Any:  # noqa: A002 - the driver's name
        call = None
        if timer.running:
            try:
                statement = timer.known.get(query) if type(query) is str and self.name is None else None
                if statement is not None:
                    call, comment = timer.prepare(statement, vars is not None)
                    query = comment + query
                else:
                    call, query = _prepare(timer, self, query, vars is not None)
            except Exception as error:  # noqa: BLE001 - the border to somebody else's process
                guarded(fault, error)
        try:
            return plain(self, query, vars)
        finally:
            if call is not None:
                try:
                    timer.end(call, 2)
                except Exception as error:  # noqa: BLE001 - the border to somebody else's process
                    guarded(fault, error)

    return execute


def _commented(base: Any, name: str, word: str, timer: StallTimer) -> Callable[..., Any]:
    """Return the driver's method `name`, timed, its statement (the argument called `word`) commented."""
    plain = getattr(base, name)
    parameters = name == "executemany"

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        call = None
        if timer.running:
            query = arguments[0] if arguments else named.get(word)
            call, sent = guarded(_prepare, timer, self, query, parameters) or (None, query)
            if arguments:
                arguments = (sent, *arguments[1:])
            elif word in named:
                named[word] = sent
        try:
            return plain(self, *arguments, **named)
        finally:
            if call is not None:
                guarded(timer.end, call, 3)

    method.__name__ = name
    return method


def _prepare(timer: StallTimer, cursor: Any, query: Any, parameters: bool) -> tuple[Call | None, Any]:
    """Return the call that begins and what to send: the same query with our comment in front.

    An empty one stays empty, so that the driver refuses it as it does without us; what is no text stays too:
    then there is no call. Where it puts `parameters` in, the driver takes `%%` for `%`.
    """
    if isinstance(query, str):
        text, encoded = query, False
    elif isinstance(query, bytes):
        text, encoded = query[: 4 * LONGEST_STATEMENT].decode("utf-8", "replace"), True
    elif hasattr(query, "as_string"):
        query = text = query.as_string(cursor)
        encoded = False
    else:
        return None, query
    if not text or text.isspace():
        return None, query
    call, comment = timer.prepare(timer.known.get(text) or timer.learn(text), parameters)
    if cursor.name is not None:
        cursor.__dict__[_STATEMENT] = call[0].text
    return call, comment.encode() + query if encoded else comment + query
