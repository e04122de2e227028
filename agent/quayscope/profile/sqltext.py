"""SQL text without its literals: tokens are read, folded and written in one pass.

Lexical rules: postgresql.org documentation, "Lexical Structure", with `standard_conforming_strings`
on (the default since 9.1, and what psycopg2 writes for: it uses `E'..'` where there is a backslash).
Every expression here is linear: what arrives may have been made to be slow.

Where it cannot be told any more what is a literal and what is not (`'O'Brien'`, a backslash outside,
typographic quotes, a lone `*/`), reading ends there: the rest is left out and the statement marked truncated.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["MAX_TOKENS", "Shape", "shape"]

MAX_TOKENS = 20_000
"""Reading stops there (about 30 ms). Lists of literals are passed over in one go and count once."""
MAX_TEXT = 8_000
"""Longer shapes are cut there, in characters; a record to the relay holds 16,000 bytes."""
MAX_COMMENT = 2_048
"""How much of a comment is kept, in characters."""
MAX_ROW = 500
"""Rows of more tokens that are not literals alone are not compared with the row before them."""

_PLACE = "\x01"  # not "?", which is an operator too; written as "?" at the end
_ROW = "(\x01)"
_SETTING_HEAD = 24
_RUN = 500  # repetitions an expression may take at once: each costs memory while it matches

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*)
    | (?P<comment>/\*)
    | (?P<string>(?:[bBxXnN]|[uU]&)?')
    | (?P<escaped>[eE]')
    | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
    | (?P<quoted>(?:[uU]&)?")
    | (?P<parameter>%s(?!\w)|%\([^()'"]{0,128}\)s|\$\d+|:'\w*')
    | (?P<number>0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+
        |(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<operator>::|(?:%%|(?!--|/\*|%s\b|%\()[-+*/<>=~!@\#%^&|`?:])+)
    | (?P<mark>[^\x00-\x1f])
    | (?P<control>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CASTS = re.compile(
    r"""(?:\s*::\s*(?:"[^"]*"|\w+)(?:\.(?:"[^"]*"|\w+))?(?:\s+(?:precision|varying)\b)?(?:\(\s*\d+(?:\s*,\s*\d+)?\s*\))?
        (?:\s+with(?:out)?\s+time\s+zone\b)?(?:\s*\[\d*\]){0,6}){1,16}""",
    re.VERBOSE | re.IGNORECASE,
)
_ITEM = r"""(?:%s|%\([^()'"]{0,128}\)s|\$\d+|[-+]?\d+(?:\.\d+)?|'[^']*(?:''[^']*)*'(?!')|null|true|false)
            (?:::\w+(?:\[\])?)?(?=\s*[,)\]])"""
_MORE_ITEMS = re.compile(rf"(?:\s*,\s*{_ITEM}){{1,{_RUN}}}", re.VERBOSE | re.IGNORECASE)
_MORE_ROWS = re.compile(
    rf"(?:\s*,\s*\(\s*{_ITEM}(?:\s*,\s*{_ITEM}){{0,{_RUN}}}\s*\)){{1,{_RUN}}}", re.VERBOSE | re.IGNORECASE
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
# What may be a quote's end: the quote alone. These walk and keep nothing, whatever a string's length.
_QUOTE_ENDS = {
    "string": re.compile("''|'"),
    "escaped": re.compile(r"\\.|''|'", re.DOTALL),
    "quoted": re.compile('""|"'),
}

# After these words an operand comes, so a sign there belongs to it and brackets hold no arguments.
# fmt: off
_OPERAND_WORDS = frozenset((
    "all", "and", "any", "as", "between", "by", "case", "distinct", "else", "from", "having", "ilike", "in",
    "is", "like", "limit", "not", "offset", "on", "or", "return", "returning", "select", "set", "similar",
    "some", "then", "to", "union", "using", "values", "when", "where", "with",
))
_SPACED_WORDS = _OPERAND_WORDS | {
    "conflict", "except", "exists", "filter", "group", "intersect", "into", "join", "lateral",
    "materialized", "over",
}
# fmt: on
_CONSTANTS = frozenset(("null", "true", "false"))
_OPERATOR_MARKS = frozenset("-+*/<>=~!@#%^&|`?:")
_STRAY = frozenset("\\\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u00b4")
"""Quotes that are none to Postgres, and the backslash, which stands in literals alone."""
_NO_SPACE_BEFORE = frozenset((",", ")", "]", ";", ".", "[", "::"))
_NO_SPACE_AFTER = frozenset(("(", "[", ".", "::"))


class Shape(NamedTuple):
    """What is left of a statement: text, bodies of its comments (the one in front, the others), if cut."""

    text: str
    front: str
    comments: list[str]
    truncated: bool


def shape(sql: str) -> Shape:
    """Return the shape of `sql`; never raises, and never shows a part of a literal that was cut."""
    folding = _Folding(sql)
    whole, front, comments = _read(sql, folding)
    if not whole and folding.doubt >= 0:
        # With backslashes as escapes, which the server may be set to, a literal would have ended elsewhere.
        upto, folding = sql[: folding.doubt], _Folding(sql)
        _read(upto, folding)
        folding.place(len(sql))
    text = folding.text()
    return Shape(text[:MAX_TEXT], front, comments, not whole or len(text) > MAX_TEXT)


def _read(sql: str, folding: _Folding) -> tuple[bool, str, list[str]]:
    """Read `sql` into `folding`; return whether it was read to its end, and its comments."""
    front, comments = "", list[str]()
    at, end, count = 0, len(sql), 0
    match = _TOKEN.match
    while at < end:
        count += 1
        found = match(sql, at)
        if found is None or count > MAX_TOKENS:
            return False, front, comments
        kind, text, start = found.lastgroup, found.group(), at
        at = found.end()
        if folding.in_setting() and text != ";" and kind not in ("space", "comment"):
            at = _behind(sql, found)
            folding.setting()
            if not at:
                return False, front, comments
        elif _is_doubtful(kind, text):
            if kind == "operator" and folding.doubt < 0:
                folding.doubt = folding.comment
            folding.place(end)
            return False, front, comments
        elif kind == "word":
            at = folding.word(text.lower(), at)
        elif kind == "mark":
            if text == ";" and folding.copies_in():
                return not sql[at:].strip(), front, comments
            at = folding.mark(text, at)
        elif kind == "operator":
            at -= _signs_behind(text)
            folding.out.append(sql[start:at].replace("%%", "%"))
        elif kind == "parameter":
            at = folding.place(at)
        elif kind == "number":
            if _runs_on(sql, at):
                folding.place(end)
                return False, front, comments
            at = folding.place(at)
        elif kind in _QUOTE_ENDS:
            close = _quote_end(sql, at, _QUOTE_ENDS[kind])
            if kind != "quoted":
                if kind == "string" and folding.doubt < 0 and "\\'" in sql[at:close]:
                    folding.doubt = start
                if _runs_on(sql, close):
                    folding.place(end)
                    return False, front, comments
                at = folding.place(close or end)
            elif close:
                at = folding.word(sql[start:close], close)
            if not close:
                return False, front, comments
        elif kind == "dollar":
            close = sql.find(text, at)
            at = folding.place(close + len(text) if close >= 0 else end)
            if close < 0:
                return False, front, comments
        elif kind == "comment":
            close = _comment_end(sql, at)
            folding.comment = start
            body = sql[at : min(close - 2 if close else end, at + MAX_COMMENT)]
            if start == 0:
                front = body
            else:
                comments.append(body)
            if not close:
                return False, front, comments
            at = close
    return True, front, comments


def _is_doubtful(kind: str | None, text: str) -> bool:
    """Whether a token says that quotes or comments do not stand where they seem to."""
    if kind == "word":
        return "$$" in text
    return "*/" in text or "`" in text if kind == "operator" else kind == "mark" and text in _STRAY


def _runs_on(sql: str, at: int) -> bool:
    """Whether a word follows a literal without a space: one that ended sooner than its writer meant."""
    return 0 < at < len(sql) and (sql[at].isalnum() or sql[at] == "_")


def _behind(sql: str, found: re.Match[str]) -> int:
    """Return the index behind the token that `found` begins; 0 when it never ends."""
    kind, at = found.lastgroup, found.end()
    if kind in _QUOTE_ENDS:
        return _quote_end(sql, at, _QUOTE_ENDS[kind])
    if kind == "dollar":
        close = sql.find(found.group(), at)
        return close + len(found.group()) if close >= 0 else 0
    return at


def _signs_behind(operator: str) -> int:
    """Return how many of an operator's last characters are signs of what follows (`=-5` is `=` `-5`).

    Postgres lets an operator end in + or - only if it has one of ~ ! @ # % ^ & | ` ? in it.
    """
    if len(operator) == 1 or any(character in "~!@#%^&|`?" for character in operator):
        return 0
    return min(len(operator) - len(operator.rstrip("+-")), len(operator) - 1)


def _quote_end(sql: str, at: int, edges: re.Pattern[str]) -> int:
    """Return the index behind the quote that ends what began before `at`; 0 when it never ends."""
    for edge in edges.finditer(sql, at):
        if edge.end() == edge.start() + 1:
            return edge.end()
    return 0


def _comment_end(sql: str, at: int) -> int:
    """Return the index behind a block comment whose `/*` ends at `at` (they nest); 0 when it never ends."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge.group() == "/*" else -1
        if not depth:
            return edge.end()
    return 0


class _Folding:
    """The tokens written so far, folded as they come.

    `_open` has one entry for each bracket that is open: where it stands in `out`, and whether it holds
    a list of values (not a call's arguments or columns, whose number is part of the statement).
    """

    def __init__(self, sql: str) -> None:
        self.out: list[str] = []
        self._sql = sql
        self._open: list[tuple[int, bool]] = []
        self._begin = 0  # of the statement that is being read, in `out`
        self.doubt = -1  # where what may have ended elsewhere begins: `'\\''`, a comment before a lone `*/`
        self.comment = -1  # where the last comment begins

    def copies_in(self) -> bool:
        """Whether this is a `COPY ... FROM STDIN`: what a script has behind it are its rows."""
        words = self.out[self._begin :]
        return words[:1] == ["copy"] and "stdin" in words

    def in_setting(self) -> bool:
        """Whether what comes next is the value of a setting, which needs no quotes: `SET role.x TO value`."""
        out, begin = self.out, self._begin
        if len(out) < begin + 3 or out[begin] not in ("set", "alter") or self._open:
            return False
        if out[-1] != _PLACE and out[-1] not in ("=", "to"):
            return False
        # A setting's name stands near the front: looking no further keeps a long statement's cost linear.
        head = out[begin : begin + _SETTING_HEAD]
        if head[0] == "set":
            return "=" in head or "to" in head
        return head[1] in ("role", "user", "database", "system") and "set" in head

    def setting(self) -> None:
        """Take a part of a setting's value: all of them together are one."""
        if self.out[-1] != _PLACE:
            self.out.append(_PLACE)

    def word(self, text: str, at: int) -> int:
        """Take a word or a quoted identifier; return where reading goes on."""
        out = self.out
        last = out[-1] if out else ""
        if text in _CONSTANTS and last != "is" and not (last == "not" and self._keeps_not(text)):
            return self.place(at)
        # Savepoints are named at random by those who nest transactions.
        out.append(_PLACE if last == "savepoint" else text)
        return at

    def _keeps_not(self, text: str) -> bool:
        """Whether `not` before this constant makes it no value: `NOT NULL`, `IS NOT TRUE`."""
        return text == "null" or self.out[-2:-1] == ["is"]

    def mark(self, text: str, at: int) -> int:
        """Take a bracket, comma or any other single character; return where reading goes on."""
        out = self.out
        if text in "([":
            last = out[-1] if out else ","
            array = text == "["
            of_values = last == "array" if array else _expects_operand(last)
            self._open.append((len(out), of_values))
        elif text in ")]" and self._open:
            start, of_values = self._open.pop()
            if of_values and len(out) == start + 2 and out[-1] in (_PLACE, _ROW):
                if text == "]":
                    del out[start - 1 :]
                    return self.place(at)
                del out[start:]
                return self._row([_ROW], at)
            if of_values and text == ")" and len(out) - start <= MAX_ROW and _PLACE in out[start:]:
                row = [*out[start:], ")"]
                del out[start:]
                return self._row(row, at)
        out.append(text)
        if text == ";" and not self._open:
            self._begin = len(out)
        return at

    def place(self, at: int) -> int:
        """Take a literal or parameter that ends at `at`; return where reading goes on.

        Its sign, its casts and, in a list of values, the literals before it are folded into it.
        """
        out = self.out
        while out and out[-1] in ("+", "-") and _expects_operand(out[-2] if len(out) > 1 else ","):
            out.pop()
        casts = _CASTS.match(self._sql, at)
        if casts is not None:
            at = casts.end()
        last = out[-1] if out else ""
        if last in ("in", "values"):
            return self._row([_ROW], at)
        if last == "is" or (last == "not" and out[-2:-1] == ["is"]):
            out.append("null")  # nothing else is passed there as a parameter
            return at
        if not self._open or not self._open[-1][1]:
            out.append(_PLACE)
            return at
        if last == "," and out[-2] == _PLACE:
            out.pop()
        else:
            out.append(_PLACE)
        return self._skip(_MORE_ITEMS, at) if last in (",", "(", "[") else at

    def _row(self, row: list[str], at: int) -> int:
        """Write a list of values, unless the list before it, one comma back, was the same."""
        out = self.out
        size = len(row)
        if out and out[-1] == "," and out[-1 - size : -1] == row:
            out.pop()
        else:
            out += row
        return self._skip(_MORE_ROWS, at) if size == 1 else at

    def _skip(self, more: re.Pattern[str], at: int) -> int:
        found = more.match(self._sql, at)
        while found is not None:
            at = found.end()
            found = more.match(self._sql, at)
        return at

    def text(self) -> str:
        """Return what was written, with one kind of white space."""
        parts: list[str] = []
        left = "("
        for right in self.out:
            if _space_between(left, right):
                parts.append(" ")
            parts.append(right)
            left = right
        return "".join(parts).rstrip("; ").replace(_PLACE, "?")


def _expects_operand(last: str) -> bool:
    """Whether a value comes after `last`, so that a sign is its sign and a bracket no call."""
    return last in _OPERAND_WORDS or last in ("(", ",", "[", ";") or last[0] in _OPERATOR_MARKS


def _space_between(left: str, right: str) -> bool:
    if right in _NO_SPACE_BEFORE or left in _NO_SPACE_AFTER:
        return False
    if right == "(":
        return left in _SPACED_WORDS or not (left[0].isalnum() or left[0] in '_"')
    return True
