"""Spans of the pod's clients without SQL literals: statements leave the pod as their normalised text.

Attribute names: OpenTelemetry semantic conventions, "Database client spans" (`db.query.text`, older
`db.statement`) and "Exceptions on spans". Instrumentations that name a span after its statement exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from quayscope.profile.protowire import fields, put_bytes, put_fixed64, put_text, text, varint
from quayscope.profile.statement import normalize, operation

__all__ = ["without_literals"]

_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2
_NAME, _ATTRIBUTES, _EVENTS, _STATUS = 5, 9, 11, 15
_EVENT_ATTRIBUTES, _STATUS_MESSAGE = 3, 2
_KEY, _VALUE, _STRING = 1, 2, 1
_STATEMENTS = frozenset(("db.statement", "db.query.text", "db.query.summary"))
_DROPPED = ("db.statement.parameters", "db.query.parameter", "db.operation.parameter")
_MESSAGES = frozenset(("exception.message", "exception.stacktrace"))
_STACK, _TYPE = "exception.stacktrace", "exception.type"
_QUOTED = re.compile(r"""["'].*["']|\([^()]*\)=\([^()]*\)?|\d{3,}""")
"""From the first quote to the last: what is quoted may itself have quotes in it."""
_OPEN = re.compile(r"""["'].*""")
_GOES_ON = ("LINE ", "DETAIL: ", "HINT: ", "CONTEXT: ", "QUERY: ", "[SQL: ", "WARNING: ", "NOTICE: ")
"""How the line below an error's first begins, where what the first quotes does not go on there."""
_DATABASES = re.compile(
    r"psycopg|asyncpg|pgconn|pgx|lib/pq|peewee|sqlalchemy|SQLSTATE|\[SQL: "
    r"|^(?:LINE \d|DETAIL: |CONTEXT: |QUERY: )",
    re.MULTILINE,
)
"""What one of these is in tells of a database's error: names of drivers and what stands above them, and how
Postgres's messages go on (libpq, "PQresultErrorMessage")."""
_FRAME = re.compile(r"""  File "[^"\n]{1,300}", line \d{1,7}, in [\w<>.]{1,200}""")
_MOST_FRAMES = 200
_TELLING = (b"db.", b"SQL", b"sql", b"psycopg", b"asyncpg", b"pgconn", b"pgx", b"lib/pq", b"peewee", b"LINE ")
"""A request with none of these in it has nothing of a database, and is passed on as it is."""
_FIXED64, _FIXED32, _LENGTH = 1, 5, 2
Change = Callable[[int, memoryview], bytes | bytearray | None]


def without_literals(request: bytes) -> bytes:
    """Return an ExportTraceServiceRequest, well-formed as `request` is, without literals in its spans.

    Parameters of statements are left out. Of a database's error, in its own span or in those above that it
    went through, the first line stays without what is quoted in it, and of its stack where each call was.
    """
    if not any(part in request for part in _TELLING):
        return request
    return bytes(_changed(memoryview(request), {_RESOURCE_SPANS: _resource}))


def _changed(message: memoryview, inner: dict[int, Change]) -> bytearray:
    """Copy a message; each field of `inner` becomes what its function returns (None: it is left out)."""
    out = bytearray()
    for number, wire, value in fields(message):
        if isinstance(value, memoryview):
            change = inner.get(number)
            kept = bytes(value) if change is None else change(number, value)
            if kept is not None:
                put_bytes(out, number, kept)
        elif wire == _FIXED64:
            put_fixed64(out, number, value)
        else:
            varint(out, number << 3 | wire)
            if wire == _FIXED32:
                out += value.to_bytes(4, "little")
            else:
                varint(out, value)
    return out


def _resource(_: int, message: memoryview) -> bytearray:
    return _changed(message, {_SCOPE_SPANS: _scope})


def _scope(_: int, message: memoryview) -> bytearray:
    return _changed(message, {_SPANS: _span})


def _span(_: int, message: memoryview) -> bytes | bytearray:
    parts = [(number, value) for number, _, value in fields(message)]
    if any(_pair(value)[0].startswith("db.") for number, value in parts if number == _ATTRIBUTES):
        return _changed(message, {_NAME: _named, _ATTRIBUTES: _attribute, _EVENTS: _event, _STATUS: _outcome})
    if any(_tells(number, value) for number, value in parts if isinstance(value, memoryview)):
        return _changed(message, {_EVENTS: _event, _STATUS: _outcome})
    return bytes(message)


def _tells(number: int, value: memoryview) -> bool:
    """Whether a span's event or status tells of a database's error."""
    if number == _STATUS:
        return any(
            _DATABASES.search(text(part)) for inner, _, part in fields(value) if inner == _STATUS_MESSAGE
        )
    if number != _EVENTS:
        return False
    pairs = (_pair(part) for inner, _, part in fields(value) if inner == _EVENT_ATTRIBUTES)
    return any(_DATABASES.search(string or "") for key, string in pairs if key in _MESSAGES or key == _TYPE)


def _named(_: int, value: memoryview) -> bytes:
    return operation(text(value)).encode("utf-8", "replace")


def _pair(value: object) -> tuple[str, str | None]:
    """Return a KeyValue's key, and its value where that is a string."""
    key, string = "", None
    if isinstance(value, memoryview):
        for number, _, part in fields(value):
            if number == _KEY:
                key = text(part)
            elif number == _VALUE and isinstance(part, memoryview):
                string = next((text(one) for inner, _, one in fields(part) if inner == _STRING), None)
    return key, string


def _with_string(key: str, string: str) -> bytearray:
    pair, held = bytearray(), bytearray()
    put_bytes(held, _STRING, string.encode("utf-8", "replace"))
    put_text(pair, _KEY, key)
    put_bytes(pair, _VALUE, held)
    return pair


def _attribute(_: int, value: memoryview) -> bytes | bytearray | None:
    key, string = _pair(value)
    if key.startswith(_DROPPED):
        return None
    if key in _STATEMENTS:
        return _with_string(key, normalize(string or "").text)
    if key in _MESSAGES:
        return _with_string(key, (_traced if key == _STACK else _told)(string or ""))
    return bytes(value)


def _event(_: int, message: memoryview) -> bytearray:
    return _changed(message, {_EVENT_ATTRIBUTES: _attribute})


def _outcome(_: int, message: memoryview) -> bytearray:
    return _changed(message, {_STATUS_MESSAGE: lambda _number, value: _told(text(value)).encode()})


def _told(message: str) -> str:
    """Return an error's first line without what it quotes: Postgres puts statement and values below."""
    first, newline, rest = message.partition("\n")
    if newline and rest and not rest.startswith(_GOES_ON):
        first = _OPEN.sub("?", first)
    return _QUOTED.sub("?", first)[:1_000]


def _traced(stack: str) -> str:
    """Return a stack's first line, and of each of Python's calls where it was."""
    return "\n".join([_told(stack), *_FRAME.findall(stack)[-_MOST_FRAMES:]])
