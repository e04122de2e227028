"""What a backend runs: where the text comes from, and what of it goes into a sample.

The literals end here: beyond this module a statement is its normalised text, and its comment the attributes
of the request that sent it.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from quayscope.profile import Frame
from quayscope.profile.statement import normalize

__all__ = ["INHERITED", "NO_STATEMENT", "Described", "StatementSource", "describe"]


class StatementSource(Protocol):
    """Says what a backend runs right now."""

    def statement(self, pid: int) -> str | None:
        """Return the text of the statement that `pid` runs, None when it runs none or cannot be seen."""


class Described(NamedTuple):
    """A statement as a sample shows it: its frame, and the request that it serves as the comment says.

    `span_id` is the database client's span, where a `traceparent` names it. `inherited`: the request is that
    of another statement of its transaction.
    """

    frame: Frame | None = None
    endpoint: str = ""
    run: str = ""
    phase: str = ""
    trace_id: str = ""
    span_id: str = ""
    inherited: bool = False

    @property
    def has_request(self) -> bool:
        """Whether the statement's comment names a request."""
        return bool(self.endpoint or self.trace_id)


NO_STATEMENT = Described()
INHERITED = Frame("request of its transaction", kind="root")
"""Stands below a statement whose request is inherited."""
_TRACEPARENT = "traceparent='"
LONGEST_DESCRIBED = 16_384
"""What of a statement is normalised, in characters: a bulk insert's head says what it is (5 ms at most)."""


def describe(text: str | None) -> Described:
    """Return the frame and the request of a statement's raw text."""
    if not text:
        return NO_STATEMENT
    front, body = _split(text[:LONGEST_DESCRIBED])
    statement = normalize(body)
    comment = {**statement.comment, **normalize(front).comment} if front else statement.comment
    trace_id = comment.get("trace", "")
    return Described(
        frame=Frame(statement.text, kind="sql") if statement.text else None,
        endpoint=comment.get("route", ""),
        run=comment.get("run", ""),
        phase=comment.get("phase", ""),
        trace_id=trace_id,
        span_id=_span(text, trace_id),
    )


def _span(text: str, trace_id: str) -> str:
    """Return the span of the trace that the normaliser has read out of a comment."""
    if not trace_id or _TRACEPARENT not in text:
        return ""
    match = re.search(rf"{_TRACEPARENT}[0-9a-f]{{2}}-{trace_id}-([0-9a-f]{{16}})-[0-9a-f]{{2}}'", text)
    return match[1] if match is not None else ""


def _split(text: str) -> tuple[str, str]:
    """Split a leading comment off: it differs with each request, and what follows is worth remembering."""
    if text.startswith("/*"):
        end = text.find("*/", 2) + 2
        if end > 1 and text.find("/*", 2, end) < 0:
            return text[:end], text[end:]
    return "", text
