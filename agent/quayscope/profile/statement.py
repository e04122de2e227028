"""The one statement normaliser of all tiers.

psycopg2 sees a template (`WHERE id = %s`), Postgres sees what came of it (`WHERE id = 7`): both give
the same text and fingerprint, and no literal is left in either.

Rules: literals and parameters become `?`; signs and casts of them are dropped; lists of them fold to
one (`IN (?)`, `VALUES (?)`, arrays); comments go, ours are read first; words are lower-cased, quoted
identifiers kept; white space is made uniform. What is cut off in the middle ends there, marked.
Lexical rules: postgresql.org documentation, "Lexical Structure".
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

__all__ = ["Statement", "encode_comment", "normalize"]

MEMO = 4096
"""How many statements are remembered; a service has hundreds."""
LONGEST_MEMO_TEXT = 20_000
"""Longer texts are normalised but not remembered: bulk inserts differ each time."""

PLACE = "?"
_COMMENT_KEYS = ("route", "trace", "run", "phase")

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*)
    | (?P<comment>/\*)
    | (?P<string>[eE]'(?:[^'\\]|\\.|'')*(?P<e_end>')?|(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?P<s_end>')?)
    | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
    | (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*(?P<q_end>")?)
    | (?P<parameter>%s(?!\w)|%\([^)]*\)s|\$\d+|:'\w*')
    | (?P<number>0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+
        |(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<cast>::)
    | (?P<operator>(?:(?!--|/\*|%s\b|%\()[-+*/<>=~!@\#%^&|`?:])+)
    | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# After these words an operand comes, so a sign there belongs to it and a list is no argument list.
_OPERAND_WORDS = """
    all and any as between by case distinct else from having ilike in is like limit not offset on
    or return returning select set similar some then to union using values when where with
"""
_BEFORE_OPERAND = frozenset(_OPERAND_WORDS.split())
_TYPE_TAILS = {
    "double": ("precision",),
    "character": ("varying",),
    "bit": ("varying",),
    "timestamp": ("with", "without", "time", "zone"),
    "time": ("with", "without", "time", "zone"),
}
_PAIR = re.compile(r"([\w%.-]+)='((?:[^'\\]|\\.)*)'")


class Statement(NamedTuple):
    """A statement without literals. `comment` has the keys route, trace, run, phase that were found.

    `fingerprint` is 16 hex digits of BLAKE2b over `text`; `truncated`: the text ended inside a token.
    """

    text: str
    fingerprint: str
    comment: dict[str, str]
    truncated: bool


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool


def normalize(sql: str) -> Statement:
    """Return the statement that `sql` is an instance or a template of; never raises on broken text."""
    return _remembered(sql) if len(sql) <= LONGEST_MEMO_TEXT else _normalize(sql)


def encode_comment(*, route: str, trace: str, run: str, phase: str, parameters: bool) -> str:
    """Return the comment that goes in front of a statement, or "" when there is nothing to say.

    `parameters`: the statement is passed with parameters, so the driver halves every `%`.
    """
    pairs = [
        f"{key}='{quote(value, safe='/ <>:')}'"
        for key, value in zip(_COMMENT_KEYS, (route, trace, run, phase))
        if value
    ]
    if not pairs:
        return ""
    comment = f"/*quayscope:{','.join(pairs)}*/ "
    return comment.replace("%", "%%") if parameters else comment


def _normalize(sql: str) -> Statement:
    tokens, comment, truncated = _scan(sql)
    text = _render(_fold_lists(_fold_values(tokens)))
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return Statement(text, digest, comment, truncated)


_remembered = lru_cache(maxsize=MEMO)(_normalize)


def _scan(sql: str) -> tuple[list[_Token], dict[str, str], bool]:
    """Split into tokens; comments are read and left out. Stops where the text was cut."""
    tokens: list[_Token] = []
    comment: dict[str, str] = {}
    at, end, spaced = 0, len(sql), False
    match_token = _TOKEN.match
    while at < end:
        found = match_token(sql, at)
        assert found is not None, "the last alternative takes any character"
        kind = found.lastgroup or "mark"
        if kind in ("e_end", "s_end"):
            kind = "string"
        elif kind == "q_end":
            kind = "quoted"
        text = found.group()
        at = found.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "comment":
            close = _comment_end(sql, at)
            _read_comment(sql[at : close - 2 if close else end], comment)
            if close == 0:
                return tokens, comment, True
            at, spaced = close, True
            continue
        if kind == "dollar":
            close = sql.find(text, at)
            tokens.append(_Token("place", PLACE, spaced))
            if close < 0:
                return tokens, comment, True
            at = close + len(text)
        elif kind in ("string", "number", "parameter"):
            tokens.append(_Token("place", PLACE, spaced))
            if kind == "string" and not (found["e_end"] or found["s_end"]):
                return tokens, comment, True
        elif kind == "quoted":
            if not found["q_end"]:
                return tokens, comment, True
            tokens.append(_Token("word", text, spaced))
        elif kind == "word":
            tokens.append(_Token("word", text.lower(), spaced))
        elif kind == "operator":
            at -= _signs_behind(text)
            shown = sql[found.start() : at].replace("%%", "%")
            tokens.append(_Token("operator", shown, spaced))
        else:
            tokens.append(_Token("cast" if kind == "cast" else "mark", text, spaced))
        spaced = False
    return tokens, comment, False


def _signs_behind(operator: str) -> int:
    """Return how many of an operator's last characters are signs of what follows (`=-5` is `=` `-5`).

    Postgres lets an operator end in + or - only if it has one of ~ ! @ # % ^ & | ` ? in it.
    """
    if len(operator) == 1 or any(character in "~!@#%^&|`?" for character in operator):
        return 0
    return min(len(operator) - len(operator.rstrip("+-")), len(operator) - 1)


def _comment_end(sql: str, at: int) -> int:
    """Return the index behind a block comment whose `/*` ends at `at` (they nest); 0 when it never ends."""
    depth = 1
    while True:
        close = sql.find("*/", at)
        if close < 0:
            return 0
        opened = sql.find("/*", at, close)
        if opened >= 0:
            depth += 1
            at = opened + 2
            continue
        depth -= 1
        at = close + 2
        if depth == 0:
            return at


def _read_comment(body: str, into: dict[str, str]) -> None:
    """Take the keys we know from our comment, or from a sqlcommenter one where ours said nothing."""
    ours = body.startswith("quayscope:")
    for name, raw in _PAIR.findall(body[len("quayscope:") :] if ours else body):
        value = unquote(raw.replace("%%", "%"))
        if ours and name in _COMMENT_KEYS:
            into[name] = value
        elif not ours and name == "route":
            into.setdefault("route", value)
        elif not ours and name == "traceparent" and value.count("-") == 3:
            into.setdefault("trace", value.split("-")[1])


def _fold_values(tokens: list[_Token]) -> list[_Token]:
    """Fold constants, signs, casts and arrays into the placeholder they belong to."""
    out: list[_Token] = []
    at, end = 0, len(tokens)
    while at < end:
        token = tokens[at]
        at += 1
        if token.kind == "word" and token.text in ("null", "true", "false") and _is_value(token.text, out):
            token = _Token("place", PLACE, token.spaced)
        if token.kind == "place":
            while (
                out
                and out[-1].kind == "operator"
                and out[-1].text in "+-"
                and _operand_follows(out, len(out) - 1)
            ):
                token = _Token("place", PLACE, out.pop().spaced)
            out.append(token)
            at = _skip_casts(tokens, at)
        elif token.text == "]" and (start := _array_start(out)) is not None:
            spaced = out[start].spaced
            del out[start:]
            out.append(_Token("place", PLACE, spaced))
            at = _skip_casts(tokens, at)
        else:
            out.append(token)
    return out


def _is_value(word: str, before: list[_Token]) -> bool:
    """Whether NULL, TRUE or FALSE stands for a value here, not in IS NULL or NOT NULL."""
    previous = before[-1].text if before else ""
    return previous != "is" and not (word == "null" and previous == "not")


def _operand_follows(before: list[_Token], end: int) -> bool:
    """Whether an operand is expected after the first `end` tokens."""
    if not end:
        return True
    last = before[end - 1]
    if last.kind == "word":
        return last.text in _BEFORE_OPERAND
    return last.kind in ("operator", "cast") or last.text in ("(", ",", "[", ";")


def _skip_casts(tokens: list[_Token], at: int) -> int:
    """Return the index behind `::type` (as often as it comes), with its length and brackets."""
    end = len(tokens)
    while at + 1 < end and tokens[at].kind == "cast" and tokens[at + 1].kind == "word":
        tails = _TYPE_TAILS.get(tokens[at + 1].text, ())
        at += 2
        while at + 1 < end and tokens[at].text == "." and tokens[at + 1].kind == "word":
            at += 2
        while at < end and tokens[at].text in tails:
            at += 1
        if (
            at + 2 < end
            and tokens[at].text == "("
            and tokens[at + 2].text == ")"
            and tokens[at + 1].kind == "place"
        ):
            at += 3
        while at + 1 < end and tokens[at].text == "[" and tokens[at + 1].text == "]":
            at += 2
        while at < end and tokens[at].text in tails:
            at += 1
    return at


def _array_start(out: list[_Token]) -> int | None:
    """Return where an `array[?, ?` that is about to close begins, if it holds placeholders alone."""
    at = len(out) - 1
    while at >= 0 and (out[at].kind == "place" or out[at].text == ","):
        at -= 1
    if at >= 1 and out[at].text == "[" and out[at - 1].text == "array":
        return at - 1
    return None


def _fold_lists(tokens: list[_Token]) -> list[_Token]:
    """Fold lists of placeholders, rows of them and lists of rows to `(?)`."""
    out: list[_Token] = []
    for token in tokens:
        if token.text == ")" and token.kind == "mark":
            start = _list_start(out)
            if start is not None:
                spaced = out[start].spaced
                del out[start:]
                _append_row(out, spaced)
                continue
        out.append(token)
        if (
            token.kind == "place"
            and len(out) > 1
            and out[-2].kind == "word"
            and out[-2].text in ("in", "values")
        ):
            out.pop()
            _append_row(out, True)
    return out


def _append_row(out: list[_Token], spaced: bool) -> None:
    """Append `(?)` as one row, unless a row stands there before a comma: then the two are one."""
    if len(out) >= 2 and out[-1].text == "," and out[-2].kind == "row":
        out.pop()
        return
    out.append(_Token("row", f"({PLACE})", spaced))


def _list_start(out: list[_Token]) -> int | None:
    """Return where the list that is about to close begins, if it is one of placeholders or rows alone."""
    at = len(out) - 1
    while at >= 0 and (out[at].kind in ("place", "row") or out[at].text == ","):
        at -= 1
    if at < 0 or out[at].text != "(" or at == len(out) - 1:
        return None
    before = out[at - 1] if at else None
    if before is not None and before.kind == "word" and before.text not in _BEFORE_OPERAND:
        return None  # arguments of a function, or a column list: their number is part of the statement
    return at


def _render(tokens: list[_Token]) -> str:
    parts: list[str] = []
    previous = _Token("mark", "", False)
    for token in tokens:
        if parts and _space_between(previous, token):
            parts.append(" ")
        parts.append(token.text)
        previous = token
    return "".join(parts).rstrip("; ")


def _space_between(left: _Token, right: _Token) -> bool:
    if right.text in (",", ")", "]", ";", ".") or left.text in ("(", "[", "."):
        return False
    if left.kind == "cast" or right.kind == "cast":
        return False
    if right.text in ("(", "["):
        return right.spaced or left.kind in ("operator", "place", "row") or left.text == ","
    return True
