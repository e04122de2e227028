"""Spans of the pod's clients without SQL literals: statements leave the pod as their normalised text.

Attribute names: OpenTelemetry semantic conventions, "Database client spans" (`db.query.text`, older
`db.statement`) and "Exceptions on spans". Instrumentations that name a span after its statement exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from quayscope.profile.protowire import fields, put_bytes, put_fixed64, put_text, text, varint
from quayscope.profile.statement import normalize

__all__ = ["without_literals"]

_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2
_NAME, _ATTRIBUTES, _EVENTS, _STATUS = 5, 9, 11, 15
_EVENT_ATTRIBUTES, _STATUS_MESSAGE = 3, 2
_KEY, _VALUE, _STRING = 1, 2, 1
_STATEMENTS = frozenset(("db.statement", "db.query.text", "db.query.summary"))
_DROPPED = ("db.statement.parameters", "db.query.parameter", "db.operation.parameter")
_MESSAGES = frozenset(("exception.message", "exception.stacktrace"))
_QUOTED = re.compile(r"\"[^\"]*\"?|'[^']*'?|\([^()]*\)=\([^()]*\)?|\d{3,}")
_PLAIN = re.compile(r"[\w.:/-]{1,80}(?: [\w.:/-]{1,80}){0,2}")
_WORDS = re.compile(r"[A-Za-z]{1,20}(?: [A-Za-z]{1,20})?(?![^\s])")
_TELLING = (b"db.", b"SQL", b"sql")
"""What one of these is in may be a database's span; the rest is passed on as it is."""
_FIXED64, _FIXED32, _LENGTH = 1, 5, 2
Change = Callable[[int, memoryview], bytes | bytearray | None]


def without_literals(request: bytes) -> bytes:
    """Return an ExportTraceServiceRequest, well-formed as `request` is, without literals in its spans.

    Parameters of statements are left out. Of an error of a database's span the first line stays, without what
    is quoted in it.
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
    keys = [_pair(value)[0] for number, _, value in fields(message) if number == _ATTRIBUTES]
    if not any(key.startswith("db.") for key in keys):
        return bytes(message)
    return _changed(message, {_NAME: _named, _ATTRIBUTES: _attribute, _EVENTS: _event, _STATUS: _outcome})


def _named(_: int, value: memoryview) -> bytes:
    """Return a span's name as it is where it is one, else the words that a statement begins with."""
    name = text(value)
    if _PLAIN.fullmatch(name) is None or re.search(r"\d{3}", name):
        words = _WORDS.match(name)
        name = words.group() if words is not None else "statement"
    return name.encode("utf-8", "replace")


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
        return _with_string(key, _told(string or ""))
    return bytes(value)


def _event(_: int, message: memoryview) -> bytearray:
    return _changed(message, {_EVENT_ATTRIBUTES: _attribute})


def _outcome(_: int, message: memoryview) -> bytearray:
    return _changed(message, {_STATUS_MESSAGE: lambda _number, value: _told(text(value)).encode()})


def _told(message: str) -> str:
    """Return an error's first line without what it quotes: Postgres puts statement and values below."""
    return _QUOTED.sub("?", message.partition("\n")[0])[:1_000]
