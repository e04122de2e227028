"""The one statement normaliser of all tiers, and the comment that joins a statement to its request.

psycopg2 sees a template (`WHERE id = %s`), Postgres sees what came of it (`WHERE id = 7`): both give
the same text and fingerprint, and no literal is left in either.

Literals and parameters become `?`; signs and casts of them are dropped; lists of them fold to one
(`IN (?)`, `VALUES (?)`, arrays); comments go, ours are read first; words are lower-cased, quoted
identifiers kept; white space is made uniform. What is cut off in the middle ends there, marked.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from quayscope.profile.sqltext import shape

__all__ = ["Statement", "comment_head", "comment_pairs", "comment_tail", "normalize", "operation"]

MEMO = 2048
"""How many statements are remembered; a service has hundreds."""
LONGEST_MEMO_TEXT = 8192
"""Longer texts are normalised but not remembered: bulk inserts differ each time."""
MAX_VALUE = 256
"""Characters of a value in the comment: a run, phase or route is shorter unless somebody plays."""

_MARK = "quayscope:"
_REQUEST_KEYS = ("route", "trace", "run", "phase")
_KEYS = (*_REQUEST_KEYS, "fp")
_PAIR = re.compile(r"(?<![\w%.-])([\w%.-]{1,64})='([^'\\]*(?:\\.[^'\\]*)*)'")
_IDS = {"trace": re.compile(r"[0-9a-f]{32}"), "fp": re.compile(r"[0-9a-f]{16}")}
_PLAIN = re.compile(r"[\w.:/-]{1,80}(?: [\w.:/-]{1,80}){0,2}")
_WORDS = re.compile(r"[A-Za-z]{1,20}(?: [A-Za-z]{1,20})?(?![^\s])")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Statement(NamedTuple):
    """A statement without literals. `comment` has those of route, trace, run, phase, fp that were found.

    `fingerprint` is 16 hex digits of BLAKE2b over `text`; `truncated`: the text ended inside a token.
    Statements are remembered and shared: leave `comment` as it is.
    """

    text: str
    fingerprint: str
    comment: dict[str, str]
    truncated: bool


def normalize(sql: str) -> Statement:
    """Return the statement that `sql` is an instance or a template of; never raises on broken text."""
    close = sql.find("*/") if sql.startswith("/*" + _MARK) else -1
    if close < 0:
        return _remembered(sql) if len(sql) <= LONGEST_MEMO_TEXT else _normalize(sql)
    # Our comment names the request, so the text is never the same twice: remember what is behind it.
    rest = sql[close + 2 :].lstrip()
    found = _remembered(rest) if len(rest) <= LONGEST_MEMO_TEXT else _normalize(rest)
    return found._replace(comment={**found.comment, **_read_ours(sql[2:close])})


def operation(name: str) -> str:
    """Return a database span's name as it is where it is one, else the words that a statement begins with.

    Instrumentations name spans after the statement: by all of it, or by its first word, which in a broken
    one is anything.
    """
    if _PLAIN.fullmatch(name) is None or re.search(r"\d{3}", name):
        words = _WORDS.match(name)
        return words.group() if words is not None else "statement"
    return name


def comment_pairs(*, route: str = "", trace: str = "", run: str = "", phase: str = "") -> str:
    """Return what a request's comments have in common, to be made once a request."""
    return ",".join(
        f"{key}='{quote(value[:MAX_VALUE], safe='/ <>:', errors='replace')}'"
        for key, value in zip(_REQUEST_KEYS, (route, trace, run, phase))
        if value
    )


def comment_head(fingerprint: str) -> str:
    """Return how a statement's comment begins: its fingerprint, where truncation does not reach it."""
    return f"/*{_MARK}fp='{fingerprint}',"


def comment_tail(pairs: str, *, parameters: bool) -> str:
    """Return how it goes on, from `comment_pairs`, which must not be empty.

    `parameters`: the statement is passed with parameters, so the driver halves every `%`.
    """
    return f"{pairs.replace('%', '%%') if parameters else pairs}*/ "


def _normalize(sql: str) -> Statement:
    found = shape(sql)
    comment: dict[str, str] = {}
    for body in (found.front, *found.comments):
        _read_commenter(body, comment)
    if found.front.startswith(_MARK):
        comment.update(_read_ours(found.front))
    digest = hashlib.blake2b(found.text.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return Statement(found.text, digest, comment, found.truncated)


_remembered = lru_cache(maxsize=MEMO)(_normalize)


def _read_ours(body: str) -> dict[str, str]:
    """Read our own comment's pairs; a trace or fingerprint that is none is left out."""
    return {
        name: value
        for name, value in _pairs(body[len(_MARK) :])
        if name in _KEYS and (name not in _IDS or _IDS[name].fullmatch(value))
    }


def _read_commenter(body: str, into: dict[str, str]) -> None:
    """Take the route and trace from a sqlcommenter comment (google.github.io/sqlcommenter/spec)."""
    if body.startswith(_MARK):
        return
    for name, value in _pairs(body):
        if name == "route":
            into.setdefault("route", value)
        elif name == "traceparent":
            found = _TRACEPARENT.fullmatch(value)
            if found is not None:
                into.setdefault("trace", found[1])


def _pairs(body: str) -> list[tuple[str, str]]:
    return [
        (name, unquote(raw.replace("%%", "%"))[:MAX_VALUE])
        for name, raw in _PAIR.findall(body[:8192])
        if name in _KEYS or name == "traceparent"
    ]
