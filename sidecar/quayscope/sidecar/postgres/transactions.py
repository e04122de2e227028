"""Whose request a statement without a comment serves: that of the transaction it is part of.

A driver opens and ends transactions by itself, so BEGIN, COMMIT and ROLLBACK carry no comment, though a
COMMIT may wait longer for the disk than all statements before it. A transaction is one request's. So within
one transaction of one backend, a statement without our comment, and what the backend does between two
statements, are of the request that the last commented statement names. They are marked: it is inferred.

Two things show that statement. One that was seen itself: the backend shows the same start of transaction
still. And in what ends a transaction, the rest of the text before: Postgres writes a text over the one before
and no further (backend_status.c, `pgstat_report_activity`), so that behind `COMMIT` the comment goes on, from
just that character. Any statement in between as long as `COMMIT` would have broken it; only a transaction
without a statement would not, and the driver begins none before it has one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["IDLE_IN_TRANSACTION", "Transactions", "left_over"]

IDLE_IN_TRANSACTION = ("idle in transaction", "idle in transaction (aborted)")
"""States of a backend whose client is elsewhere while its transaction is open."""

_HEAD = b"/*quayscope:fp='"
_COMMENT = re.compile(rb"/\*quayscope:fp='[0-9a-f]{16}',[^*]*\*/")
_ENDS = (b"COMMIT", b"ROLLBACK", b"END", b"ABORT")
_MOST_HELD = 16_384


class _Seen(NamedTuple):
    transaction_start_ns: int
    comment: str


def left_over(activity: bytes, rest: bytes) -> str:
    """Return the comment of the statement before, "" where there is none.

    `rest` is what lies behind the zero that ends `activity`.
    """
    if not rest or activity.upper() not in _ENDS:
        return ""
    found = _COMMENT.match(_HEAD[: len(activity) + 1] + rest)
    return found[0].decode(errors="replace") if found is not None else ""


class Transactions:
    """Remembers of each backend the last comment seen in its transaction; of 16,384 at a time."""

    def __init__(self) -> None:
        self._held: dict[int, _Seen] = {}

    def comment(self, backend: int, transaction_start_ns: int, text: str, rest: str) -> str:
        """Return the comment that is a statement's by its transaction; "" where it has its own, or none.

        `transaction_start_ns` is 0 outside of one, `rest` is what `left_over` says.
        """
        if text.startswith("/*quayscope:"):
            if transaction_start_ns:
                if len(self._held) >= _MOST_HELD:
                    self._held.clear()
                end = text.find("*/") + 2
                self._held[backend] = _Seen(transaction_start_ns, text[:end] if end > 1 else "")
            return ""
        seen = self._held.get(backend)
        if seen is not None and seen.transaction_start_ns == transaction_start_ns:
            return seen.comment
        return rest

    def forget(self, backend: int) -> None:
        """Drop what is known of a backend that ended."""
        self._held.pop(backend, None)
