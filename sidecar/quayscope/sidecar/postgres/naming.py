"""Names for very many statements: normalising each text anew would cost more than all the rest of a sweep.

Statements of one form differ in their literals alone, so a text is first reduced to a form with its numbers
and strings replaced, by one regular expression (a seventh of the normaliser's time), and the normaliser is
asked once a form. Where that expression could mistake what is a literal (escapes, dollar quotes, comments
inside) the whole text is the form. Two texts of one form have the same normalised text; a test holds that.
"""

from __future__ import annotations

import re

from quayscope.profile import Frame
from quayscope.sidecar.statements import NO_STATEMENT, Described, describe

__all__ = ["UNNAMED", "Namer"]

UNNAMED = Described(frame=Frame("statements not named in time", kind="sql"))
"""Stands for statements of a second that brought more new texts than there is time for."""

_LITERALS = re.compile(r"""'[^']*'|(?<![\w$.])\d+(?:\.\d+)?(?![\w.])""")
_LITERALS_AND_NAMES = re.compile(rf"""("[^"]*")|{_LITERALS.pattern}""")
_MISTAKABLE = re.compile(r"""\\|--|/\*|\$\w*\$""")
_MAX_HELD = 4096
_LONGEST_HELD = 2048
_FORM_COST = 1
_NORMALISED_FOR_ONE = 16
BUDGET = 2500
"""Forms a second, some 6 us each; so long the normaliser takes for 16 characters."""


class Namer:
    """Describes texts; remembers up to 4,096 of them and as many forms, of 2,048 characters at most."""

    def __init__(self) -> None:
        self._texts: dict[str, Described] = {}
        self._forms: dict[str, Described] = {}
        self._inherited: dict[tuple[Described, str], Described] = {}
        self._left = BUDGET
        self.undescribed = 0

    def next_second(self) -> None:
        """Give the next second its budget."""
        self._left = BUDGET

    def describe(self, text: str) -> Described:
        """Return what `statements.describe` says of a text, or `UNNAMED`, counted, beyond the budget."""
        if not text:
            return NO_STATEMENT
        found = self._texts.get(text)
        if found is None:
            if self._left <= 0:
                self.undescribed += 1
                return UNNAMED
            found = self._described(text)
            _keep(self._texts, text, found)
        return found

    def inherit(self, described: Described, comment: str) -> Described:
        """Return a statement with the request that another's comment names, and marked so."""
        request = self.describe(comment)
        if described.has_request or not request.has_request:
            return described
        found = self._inherited.get((described, comment))
        if found is None:
            if len(self._inherited) >= _MAX_HELD:
                self._inherited.clear()
            found = request._replace(frame=described.frame, inherited=True)
            self._inherited[described, comment] = found
        return found

    def _described(self, text: str) -> Described:
        front, body = _front(text)
        self._left -= _FORM_COST
        form = _form(body)
        found = self._forms.get(form)
        if found is None:
            self._left -= len(body) // _NORMALISED_FOR_ONE
            found = describe(body)
            _keep(self._forms, form, found)
        if not front:
            return found
        # The comment names the request, and differs with each.
        request = describe(front)
        return found._replace(
            endpoint=request.endpoint or found.endpoint,
            run=request.run or found.run,
            phase=request.phase or found.phase,
            trace_id=request.trace_id or found.trace_id,
            span_id=request.span_id if request.trace_id else found.span_id,
        )


def _front(text: str) -> tuple[str, str]:
    """Split a leading comment off, unless another begins inside it."""
    if text.startswith("/*"):
        end = text.find("*/", 2) + 2
        if end > 1 and text.find("/*", 2, end) < 0:
            return text[:end], text[end:]
    return "", text


def _form(body: str) -> str:
    if _MISTAKABLE.search(body):
        return body
    quotes = body.count('"')
    if not quotes:
        return _LITERALS.sub("?", body)
    return body if quotes % 2 else _LITERALS_AND_NAMES.sub(r"\1?", body)


def _keep(held: dict[str, Described], key: str, value: Described) -> None:
    if len(key) > _LONGEST_HELD:
        return
    if len(held) >= _MAX_HELD:
        held.clear()
    held[key] = value
