"""What a backend runs: where the text comes from, and what of it goes into a sample.

The literals end here: beyond this module a statement is its normalised text, and its comment the attributes
of the request that sent it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from quayscope.profile import Frame
from quayscope.profile.statement import normalize

__all__ = ["NO_STATEMENT", "Described", "StatementSource", "describe"]


class StatementSource(Protocol):
    """Says what a backend runs right now."""

    def statement(self, pid: int) -> str | None:
        """Return the text of the statement that `pid` runs, None when it runs none or cannot be seen."""


class Described(NamedTuple):
    """A statement as a sample shows it: its frame, and the request that it serves as the comment says."""

    frame: Frame | None = None
    endpoint: str = ""
    run: str = ""
    phase: str = ""
    trace_id: str = ""

    @property
    def has_request(self) -> bool:
        """Whether the statement's comment names a request."""
        return bool(self.endpoint or self.trace_id)


NO_STATEMENT = Described()
LONGEST_DESCRIBED = 16_384
"""What of a statement is normalised, in characters: a bulk insert's head says what it is (5 ms at most)."""


def describe(text: str | None) -> Described:
    """Return the frame and the request of a statement's raw text."""
    if not text:
        return NO_STATEMENT
    front, body = _split(text[:LONGEST_DESCRIBED])
    statement = normalize(body)
    comment = {**statement.comment, **normalize(front).comment} if front else statement.comment
    return Described(
        frame=Frame(statement.text, kind="sql") if statement.text else None,
        endpoint=comment.get("route", ""),
        run=comment.get("run", ""),
        phase=comment.get("phase", ""),
        trace_id=comment.get("trace", ""),
    )


def _split(text: str) -> tuple[str, str]:
    """Split a leading comment off: it differs with each request, and what follows is worth remembering."""
    if text.startswith("/*"):
        end = text.find("*/", 2) + 2
        if end > 1 and text.find("/*", 2, end) < 0:
            return text[:end], text[end:]
    return "", text
